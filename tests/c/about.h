/* The layout of hak_about(): the one thing that the tests know of hakmem's records; all others are looked up in it. */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hak_field {
    uint32_t offset, size;
};
struct hak_record {
    const char *name, *kinds, *texts; /* kinds: a letter for each field; texts: about_text */
    const struct hak_field *fields;
    uint32_t nfields, size, texts_len, reserved;
};
struct hak_about {
    uint32_t abi, size;
    const char *version, *variant;
    const struct hak_record *records;
    uint32_t nrecords, reserved;
};

static inline const struct hak_record *about_record(const struct hak_about *about, const char *name)
{
    for (uint32_t i = 0; i < about->nrecords; i++)
        if (strcmp(about->records[i].name, name) == 0) return &about->records[i];
    return NULL;
}

/* A text of a field: they stand one behind the other. */
enum { TEXT_NAME, TEXT_UNIT, TEXT_VIEW, TEXT_HELP, TEXTS };
static inline const char *about_text(const struct hak_record *record, uint32_t field, int which)
{
    const char *text = record->texts;
    for (uint32_t n = field * TEXTS + (uint32_t)which; n; n--) text += strlen(text) + 1;
    return text;
}

/* A number of a row, by name; 64 bits or 32. */
static inline uint64_t about_number(const struct hak_record *record, const void *row, const char *name)
{
    for (uint32_t i = 0; i < record->nfields; i++) {
        const struct hak_field *f = &record->fields[i];
        if (strcmp(about_text(record, i, TEXT_NAME), name) != 0) continue;
        return f->size == 8 ? *(const uint64_t *)((const char *)row + f->offset)
                            : *(const uint32_t *)((const char *)row + f->offset);
    }
    fprintf(stderr, "no field %s in %s\n", name, record->name);
    abort();
}
