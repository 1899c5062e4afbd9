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

/* The field of that name, or nfields.  What was looked up last is known by the name's address, as names are literals: some
 * are looked up a million times. */
static inline uint32_t about_field(const struct hak_record *record, const char *name)
{
    static _Thread_local struct {
        const struct hak_record *record;
        const char *name;
        uint32_t field;
    } known[64], *at;
    at = &known[(uintptr_t)name / 8 % 64];
    if (at->record == record && at->name == name) return at->field;
    const char *text = record->texts;
    uint32_t i = 0;
    for (; i < record->nfields && strcmp(text, name) != 0; i++)
        for (int which = 0; which < TEXTS; which++) text += strlen(text) + 1;
    at->record = record;
    at->name = name;
    at->field = i;
    return i;
}

/* A number of a row, by name; 64 bits or 32. */
static inline uint64_t about_number(const struct hak_record *record, const void *row, const char *name)
{
    uint32_t i = about_field(record, name);
    if (i == record->nfields) {
        fprintf(stderr, "no field %s in %s\n", name, record->name);
        abort();
    }
    const struct hak_field *f = &record->fields[i];
    return f->size == 8 ? *(const uint64_t *)((const char *)row + f->offset)
                        : *(const uint32_t *)((const char *)row + f->offset);
}
