/* The layout of hak_about(): the one thing that the tests know of hakmem's records; all others are looked up in it. */
#pragma once
#include <stdint.h>

struct hak_field {
    const char *name, *kind, *unit, *view, *help;
    uint32_t offset, size;
};
struct hak_record {
    const char *name;
    const struct hak_field *fields;
    uint32_t nfields, size;
};
struct hak_about {
    uint32_t abi, size;
    const char *version, *variant;
    const struct hak_record *records;
    uint32_t nrecords, reserved;
};
