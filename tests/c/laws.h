/* What has to hold of hakmem's counts while no thread is inside it, for programs that are compiled together with
 * _hakmem_backend.c. They may replace CHECK. */
#pragma once
#include "about.h"

#include <stddef.h>
#include <unistd.h>

int hak_stats_snapshot(void *, size_t), hak_class_table(void *, size_t, int), hak_segment_table(void *, size_t, int);
const struct hak_about *hak_about(void);

#ifndef CHECK
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            dprintf(2, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                                 \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)
#endif

static inline const struct hak_record *record(const char *name)
{
    const struct hak_record *found = about_record(hak_about(), name);
    CHECK(found);
    return found;
}

static inline uint64_t stat_sum(const char *const *names, const void *stats)
{
    uint64_t sum = 0;
    for (; *names; names++) sum += about_number(record("stats"), stats, *names);
    return sum;
}

/* Also in a child that has lost the other threads in the middle of anything. */
static inline void laws(void)
{
    static _Alignas(16) char stats[4096], classes[256 * 1024], segments[8 << 20];
    static const char *const terms[] = {"live_bytes", "cached_bytes", "transit_bytes", "slab_free_bytes",
        "slab_tail_bytes", "free_dirty_bytes", "free_clean_bytes", "kept_whale_bytes", "metadata_bytes", NULL};
    static const char *const used[] = {"live_bytes", "cached_bytes", "transit_bytes", NULL};
    const struct hak_record *s = record("stats"), *c = record("class"), *g = record("segment");
    CHECK(s->size <= sizeof stats && hak_stats_snapshot(stats, s->size) == 0);
    int count = hak_class_table(classes, c->size, (int)(sizeof classes / c->size));
    int pieces = hak_segment_table(segments, g->size, (int)(sizeof segments / g->size));
    CHECK((size_t)count * c->size <= sizeof classes && (size_t)pieces * g->size <= sizeof segments);
#define STAT(name) about_number(s, stats, name)
    CHECK(stat_sum(terms, stats) == STAT("committed_bytes"));
    CHECK(STAT("allocs") - STAT("frees") == STAT("live_blocks"));
    CHECK(STAT("alloc_bytes") - STAT("freed_bytes") == STAT("live_bytes"));
    CHECK(STAT("peak_used_bytes") >= stat_sum(used, stats));
    uint64_t size = 0, out = 0;
    for (int i = 0; i < pieces; i++) {
        const char *piece = segments + (size_t)i * g->size;
        size += about_number(g, piece, "total_size");
        out += about_number(g, piece, "used_blocks") * about_number(g, piece, "block_size");
    }
    CHECK(size + STAT("metadata_bytes") == STAT("committed_bytes"));
    CHECK(out == stat_sum(used, stats));
    for (int i = 0; i < count; i++) {
        const char *row = classes + (size_t)i * c->size;
#define ROW(name) about_number(c, row, name)
        CHECK(ROW("allocs") - ROW("frees") == ROW("live_blocks"));
        CHECK(ROW("stack_frees") + ROW("slab_frees") + ROW("remote_frees") == ROW("frees"));
        CHECK((int64_t)ROW("stack_frees") >= 0 && (int64_t)ROW("slab_frees") >= 0 && (int64_t)ROW("transit_blocks") >= 0);
    }
}
