/* _hakmem_backend.c -- hakmem, the allocator you can see into: a thread-caching malloc in one file.
 *
 * A thread pops a block from a stack of pointers and pushes it back when it is freed: no lock, no atomic
 * operation, and the block itself is not touched.  Everything that is known about a block stands apart from it.
 *
 *  thread -- H (one TLS pointer)
 *              |
 *              v
 *            heap -- per class: a stack of block POINTERS          <-- malloc pops, free pushes
 *              |
 *              |   refill (a batch, top-down)   ^  flush (the oldest half)
 *              v   under the heap's claim       |
 *            slabs of this heap, a bitmap each  <-- inbox: batches of pointers from other threads' frees
 *              |
 *              v
 *            unit table: one 32-bit word for each 64 KiB: owner heap << 8 | class; 0 = free, RUN, ORPHAN
 *              |
 *              v
 *            page heap (one lock): runs of units in superslabs of 4 MiB; orphaned slabs by class
 *              |
 *              v
 *            reserved address range -- OS pages: commit, purge after a delay     whales: mappings of their own
 *
 * Terms.  Block: what the caller gets.  Slab: one or more units that hold blocks of one class.  Unit: 64 KiB.
 * Superslab: 64 units, aligned.  Run: consecutive units, free or one large block.  Heap: one thread's stacks and
 * slabs.  Class: a block size.  Tier: tiny, l2, l25, whale.  Claim: the lock of one heap's slabs.  Orphan: a slab
 * whose thread has died.
 *
 * Invariants.
 *  1. Only the holder of a heap's claim changes that heap's slabs (bitmaps, lists).  The owner holds it in its slow
 *     paths; trim, fork and a poster that finds the inbox too full take it too.  A thread holds one claim at most
 *     (fork: all, in the order of their ids).  The unit words of a heap's slabs change under its claim; those of free
 *     units and orphans under the page heap's lock.
 *  2. Only the owning thread touches its stacks, their indices and their capacities.  A child of fork drops those of
 *     the threads that it has not got.
 *  3. A block in a stack, in an outgoing batch or in an inbox counts as used: its slab cannot disappear.
 *  4. A stack holds only blocks of slabs that its heap owns, unless `lost` is set: then the owner sorts its stacks
 *     out before it flushes them.  Every drain looks at each block's owner again, so a heap struct that was reused in
 *     between does no harm.
 *  5. Heap structs, the unit table and slab metadata are type-stable: reused, never unmapped.  A poster with a stale
 *     owner, or a reader of statistics, cannot fault.
 *  6. No metadata lies in or next to blocks.  (Hardened: a seal ends each, and only tells whether it is whole.)
 *  7. free never needs memory, and preserves errno.
 *
 * Order of locks: heaps list, claim, ACE, purge, page heap, batch pool, whales, metadata.
 *
 * Sections: tables; compiler and platform; atomics and locks; types; state; OS; messages; options; size classes;
 * targets; metadata; gauges; rings; page heap; whales; slabs; hardening; heaps; remote frees and orphans; refill and
 * flush; thread start and end; large runs; slow paths; HOT PATHS (start reading there); derived calls; learning (ACE);
 * introspection; lifecycle; libc and C++.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/stat.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

/* ================================================================ tables ======================================= */

#define HAK_VERSION "0.1.0"
#define HAK_ABI 2u /* raised when a struct of the introspection section changes its meaning */

/* A tier is a row: smallest and largest block, classes to a doubling, least blocks in a slab, number of classes. */
#define HAK_TIERS(X)             \
	X(tiny, 8, 1024, 8, 1, 33)   \
	X(l2, 1025, 32768, 4, 8, 20) \
	X(l25, 32769, 1048576, 4, 1, 20)

/* name, type, unit, default, least, most, when it may change, help, and when a user would want it.  Read from
 * HAKMEM_<NAME> at the first call. */
#define HAK_OPTIONS(X)                                                                                   \
	X(enable_tls, bool, "", 1, 0, 1, start, "thread caches; 0: one shared heap behind one lock (P0)",    \
	  "0 to compare, or to see whether a bug has to do with threads")                                    \
	X(tls_tiny, bool, "", 1, 0, 1, start, "thread caches for blocks up to 1 KiB (P1)", "0 to compare")   \
	X(tls_l2, bool, "", 1, 0, 1, start, "thread caches for blocks above 1 KiB, up to 32 KiB (P2)",       \
	  "0 where very many threads each use such blocks now and then, and memory counts more than time")   \
	X(tls_l25, bool, "", 1, 0, 1, start, "thread caches for blocks above 32 KiB, up to 1 MiB (P3)",      \
	  "0 likewise")                                                                                      \
	X(tiny_use_superslab, bool, "", 1, 0, 1, start, "many slabs share a superslab; 0: one slab in each", \
	  "0 to compare; it costs address space")                                                            \
	X(reserve, bytes, "bytes", 0, 0, 1ll << 40, start, "address range reserved at a time; 0: twice the memory, at least 64 GiB", \
	  "smaller where a tool judges by virtual size, larger where a program uses swap beyond that")       \
	X(purge_ms, int, "ms", 1000, 0, 3600000, any, "age at which free memory goes back to the system",    \
	  "smaller where RSS is paid for, larger where load comes in waves")                                 \
	X(retain, bytes, "bytes", 24ll << 20, 0, 1ll << 40, any, "free memory kept whatever is live; above it, as much as is in use", \
	  "0 in a tight cgroup, larger where a program frees nearly everything between two bursts")          \
	X(huge_pages, bool, "", 0, 0, 1, start, "transparent huge pages in the range (they cost resident memory)", \
	  "1 for large tables that live long and are read at random")                                        \
	X(ace, mode, "off|shadow|on", 0, 0, 2, start,                                                        \
	  "a thread learns batches, capacities and retention from refills; shadow: it only says what it would do (view `ace`)", \
	  "shadow to see what would suit a long-lived program, on if its `bench.py ace` or yours says that it helps") \
	X(ace_ms, int, "ms", 250, 10, 60000, start, "length of a window in which ACE counts before it judges", \
	  "smaller where load changes within a second; each window wakes its thread once")                   \
	X(hardened, int, "", HAK_HARDENED, HAK_HARDENED, 2 * HAK_HARDENED, start,                            \
	  "hardened library: 1 checks each pointer and each block's end, 2 also for use after free",         \
	  "1 in tests and where input is hostile, 2 to find a bug")

/* Counters that a heap keeps: name, unit, views, help.  Each is written under the heap's claim or by its owner alone
 * (never by two sides), and read by anybody.  The views are those of hakmem.report() that show it. */
#define HAK_HEAP_COUNTERS(X)                                                                              \
	X(refills, "refills", "refills", "stacks found empty and filled in one go")                           \
	X(refill_inbox_blocks, "blocks", "refills", "blocks put into stacks from the inbox")                  \
	X(refill_bitmap_blocks, "blocks", "refills", "blocks put into stacks from bitmaps of used slabs")     \
	X(refill_carve_blocks, "blocks", "refills", "blocks put into stacks that were never used before")     \
	X(flushes, "flushes", "frees", "stacks found full and emptied by half")                               \
	X(flush_blocks, "blocks", "frees", "blocks moved from stacks to bitmaps")                             \
	X(remote_frees, "blocks", "frees", "blocks freed by a thread that does not own them")                 \
	X(batches_posted, "batches", "frees", "batches of remote frees put into an inbox")                    \
	X(batches_claimed, "batches", "frees", "batches freed under the owner's claim, its inbox being full") \
	X(batches_rerouted, "batches", "frees", "batches whose owner had died before they arrived")           \
	X(batches_orphaned, "batches", "frees", "batches of blocks in orphaned slabs")                        \
	X(batches_drained, "batches", "frees refills", "batches taken out of the inbox")                      \
	X(inboxes_helped, "inboxes", "frees threads", "inboxes of idle threads emptied by this one")          \
	X(slabs_adopted, "slabs", "refills threads", "slabs of dead threads taken over")                      \
	X(slabs_new, "slabs", "refills", "slabs made of free units")                                          \
	X(slabs_released, "slabs", "frees", "empty slabs given back to the page heap")                        \
	X(cache_grows, "changes", "refills", "stack capacities doubled")                                      \
	X(cache_shrinks, "changes", "refills", "stack capacities halved")                                     \
	X(settles, "passes", "frees", "passes over a heap whose live bytes had halved")                       \
	X(slab_purged_bytes, "bytes", "pools", "OS pages without a used block given back from partly used slabs")

/* The rest of a snapshot: name, unit, views, help.  The rows of the view "committed" add up to committed_bytes. */
#define HAK_GLOBAL_STATS(X)                                                                                           \
	X(allocs, "blocks", "summary refills", "blocks handed out, ever")                                                 \
	X(frees, "blocks", "summary frees", "blocks taken back, ever")                                                    \
	X(alloc_bytes, "bytes", "refills", "bytes of blocks handed out, ever, rounded up to their class")                 \
	X(freed_bytes, "bytes", "frees", "bytes of blocks taken back, ever")                                              \
	X(cache_hits, "blocks", "refills", "blocks handed out from a stack on the fast path")                             \
	X(cache_misses, "blocks", "refills", "blocks up to 1 MiB handed out on the slow path")                            \
	X(live_blocks, "blocks", "summary", "blocks that callers hold")                                                   \
	X(live_bytes, "bytes", "summary pools committed", "bytes of blocks that callers hold, rounded up to their class") \
	X(cached_bytes, "bytes", "pools committed", "blocks in the threads' stacks")                                      \
	X(transit_bytes, "bytes", "pools committed", "blocks in outgoing batches and inboxes")                            \
	X(slab_free_bytes, "bytes", "pools committed", "free blocks of slabs in use, blocks never used among them")       \
	X(slab_tail_bytes, "bytes", "pools committed", "ends of slabs too short for a block")                             \
	X(free_dirty_bytes, "bytes", "pools committed", "free units whose memory has been used and not given back")       \
	X(free_clean_bytes, "bytes", "pools committed", "free units without memory behind them")                          \
	X(kept_whale_bytes, "bytes", "pools committed", "freed mappings kept for reuse")                                  \
	X(metadata_bytes, "bytes", "pools committed", "memory mapped for heaps, slabs and batches")                       \
	X(committed_bytes, "bytes", "summary pools", "address space that may be touched: the parts in the view pools")    \
	X(peak_used_bytes, "bytes", "summary", "most bytes of live, cached and transit blocks at once, to an eighth at worst") \
	X(in_use_bytes, "bytes", "summary pools", "units in slabs and runs, and whales in use")                           \
	X(peak_in_use_bytes, "bytes", "summary pools", "the most that in_use_bytes has been")                             \
	X(large_blocks, "blocks", "pools", "blocks above 1 MiB that callers hold, in runs")                               \
	X(large_bytes, "bytes", "pools", "bytes of those runs")                                                           \
	X(whale_blocks, "blocks", "pools", "blocks in mappings of their own that callers hold")                           \
	X(whale_bytes, "bytes", "pools", "bytes of those mappings")                                                       \
	X(whale_hits, "blocks", "refills pools", "whales served from a kept mapping")                                     \
	X(address_space_bytes, "bytes", "pools", "address space reserved for superslabs")                                 \
	X(superslabs, "superslabs", "pools", "superslabs in use")                                                         \
	X(slabs, "slabs", "pools", "slabs that heaps own")                                                                \
	X(orphan_slabs, "slabs", "pools threads", "slabs of dead threads that nobody has taken over")                     \
	X(heaps, "heaps", "threads", "heaps of running threads, the shared one included")                                 \
	X(heaps_made, "heaps", "threads", "heap structs ever made")                                                       \
	X(threads_exited, "threads", "summary threads", "threads that have handed their heap back")                       \
	X(shared_locks, "acquisitions", "summary locks", "acquisitions of locks that threads share (claims apart)")       \
	X(shared_locks_contended, "acquisitions", "summary locks", "of these, those that had to wait")                    \
	X(claims, "acquisitions", "locks", "acquisitions of heaps' claims")                                               \
	X(claims_contended, "acquisitions", "locks", "of these, those that had to wait")                                  \
	X(purges, "runs", "pools", "runs of free units given back to the system")                                         \
	X(purged_bytes, "bytes", "pools", "dirty bytes of those runs")                                                    \
	X(ace_events, "events", "ace", "events of refills that ACE has read")                                             \
	X(ace_drops, "events", "ace", "events that found a ring full")                                                    \
	X(ace_windows, "windows", "ace", "windows that ACE has judged")                                                   \
	X(ace_windows_ignored, "windows", "ace", "windows with too many drops to judge by")                               \
	X(ace_changes, "changes", "ace", "targets that ACE has changed, or in shadow would have")                         \
	X(ace_undone, "changes", "ace", "of these, those undone because their own measure was no better for it")

/* Errors that the checked calls return, new ones at the end; the same words stand in the message before an abort. */
#define HAK_ERRORS(X)                                                                   \
	X(OK, "no error")                                                                   \
	X(FOREIGN, "not a block of hakmem")                                                 \
	X(INTERIOR, "inside a block, not its start")                                        \
	X(ALREADY_FREE, "already free")                                                     \
	X(NOMEM, "out of memory")                                                           \
	X(NO_OPTION, "no option of that name")                                              \
	X(RANGE, "value out of range")                                                      \
	X(WHEN, "can only be set in the environment, before the process starts")            \
	X(SIZE, "struct size differs: hakmem.py and the library are of different versions") \
	X(ALIGN, "alignment is not a power of two")                                         \
	X(TEXT, "not a value of that option")                                               \
	X(OVERRUN, "written past its end")                                                  \
	X(STALE, "written to after it was freed")                                           \
	X(DELETE_SIZE, "deleted with another size than it was made with")                   \
	X(IN_USE, "about to be handed out while in use: freed twice before")

/* What ACE may learn: name, unit, of what (each class, or all), windows of one opinion before it acts, the measure by
 * which a change is judged (lower is better), and the rule in one sentence.  A change is measured over the next busy
 * windows: where its measure is not better by a twentieth, it is undone, and not tried again for a while that doubles. */
#define HAK_POLICIES(X)                                                                                         \
	X(batch, "blocks", class, 3, "refills and flushes per million blocks",                                      \
	  "A class that refills busily, for more than a block in 100, and flushes little, fetches twice as many blocks at a time.") \
	X(capacity, "blocks", class, 3, "refills and flushes per million blocks",                                   \
	  "A class with a flush for every four refills gets stacks of twice the capacity in every heap.")           \
	X(remote, "bytes", all, 3, "batches per million remote frees",                                              \
	  "When batches of remote frees leave for their bytes less than half full, they may hold twice the bytes.") \
	X(retain, "bytes", all, 2, "wanted again of what was given back for being too much, per million bytes taken", \
	  "When memory that was given back for being too much is wanted again, so much more may be kept.")          \
	X(bigcache, "bytes", all, 2, "mapped again of what was unmapped for being too much, per million bytes of whales", \
	  "When whales are mapped anew after kept ones were unmapped for being too many, so many more bytes may be kept.") \
	X(purge, "ms", all, 2, "wanted again of what was given back for its age, per million bytes taken",          \
	  "When memory that was given back for its age is wanted again, memory grows as old as that pause before it goes.")

/* Locks that threads share, in their order (claims come after the first): name, place, help. */
#define HAK_SHARED_LOCKS(X)                                              \
	X(heaps, hak_heaps.lock, "the list of heaps: threads begin and end") \
	X(ace, hak_ace.lock, "what the learning thread knows, and its log")  \
	X(purge, hak_page.purging, "giving memory back to the system")       \
	X(page_heap, hak_page.lock, "runs of units, orphaned slabs")         \
	X(batch_pool, hak_pool.lock, "empty batches")                        \
	X(whales, hak_whales.lock, "mappings of their own")                  \
	X(metadata, hak_meta.lock, "memory for heaps, slabs and batches")

/* Environment names with the prefix that are read by hakmem.py and not here. */
#define HAK_PYTHON_ENV(X) X("HAKMEM_LIBRARY")

/* Geometry.  Everything else follows from these. */
enum {
	HAK_UNIT_SHIFT = 16,              /* a unit is 64 KiB: the least that one heap owns */
	HAK_SUPER_UNITS = 64,             /* units in a superslab: one word of dirty bits */
	HAK_UNITS_MAX = 1 << 22,          /* units that the table covers: 256 GiB; 16 MiB of untouched bss */
	HAK_HEAPS_MAX = 1 << 16,          /* heap ids */
	HAK_RANGES_MAX = 64,              /* reserved ranges */
	HAK_STACK_MAX = 2048,             /* most blocks in a stack */
	HAK_STACK_BYTES = 512 << 10,      /* most bytes in a stack, but two blocks at least */
	HAK_STACK_FIRST = 64,             /* blocks that a stack may hold at first */
	HAK_STACK_FIRST_BYTES = 64 << 10, /* most bytes in a stack at first, but four blocks if it may ever hold them */
	HAK_BATCH_MOST = 64,              /* blocks of a refill: 64 of the smallest falling to 16 ... */
	HAK_BATCH_BYTES = 16 << 10,       /* ... at this many bytes, and fewer of larger ones */
	HAK_REMOTE_BLOCKS = 126,          /* pointers in a batch of remote frees: the struct is 1 KiB */
	HAK_REMOTE_BYTES = 256 << 10,     /* a batch with so many is posted; an inbox with so many is full */
	HAK_REMOTE_AT_ONCE = 64 << 10,    /* a block of this size is posted at once */
	HAK_LEFT_ALONE = 4,               /* full inboxes that others empty before an idle owner loses its slabs */
	HAK_OUT_SLOTS = 16,               /* owners for which a thread collects batches at a time */
	HAK_POOL_MOVE = 16,               /* empty batches move between a heap and the pool so many at a time */
	HAK_INLINE_BITS = 512,            /* a slab of more blocks has its bitmap outside its struct */
	HAK_MAP_WORDS = 128,              /* words of such a bitmap: 64 KiB in blocks of 8 bytes */
	HAK_REGRET_MS = 100,              /* memory that is wanted again so soon should not have been purged */
	HAK_PURGE_SUPERS = 16,            /* superslabs given back in one call at most */
	HAK_TICK = 64,                    /* slow paths between two looks at the clock */
	HAK_STALE_MS = 100,               /* remote frees that have been on their way for so long are helped along */
	HAK_SETTLE_LEAST = 1 << 20,       /* a heap whose live bytes never rose above this is not looked through */
	HAK_KEPT_WHALES = 64,             /* freed mappings kept at most */
	HAK_NOTES = 8192 + 272,           /* notes of a slab: 64 KiB in blocks of 8 bytes, and not in the same cache sets as the next */
	HAK_GUARD = 64 << 10,             /* bytes that nobody may touch before and behind tables: any OS page */
	HAK_REFUSALS = 8,                 /* mappings that the system does not unmap before no more are tried */
	HAK_FORBIDDEN_RUNS = 16 << 10,    /* free runs that are set apart in mappings, of which a process has 65,530 */
	HAK_GAUGE_SHARE = 8,              /* a heap tells the gauges of a change once it is an eighth of what they know, ... */
	HAK_GAUGE_LEAST = 4 << 10,        /* ... but not of less than these bytes, ... */
	HAK_GAUGE_MOST = 64 << 10,        /* ... and always of these */
	HAK_RING = 512,                   /* events in a ring: 8 KiB */
	HAK_RING_EVERY = 8,               /* refills of a class that one event stands for at first ... */
	HAK_RING_RARELY = 2048,           /* ... and no more if as many as that already */
	HAK_ACE_LOG = 256,                /* decisions that are remembered */
	HAK_ACE_STACK = 128 << 10,        /* bytes of the learning thread's stack */
	HAK_ACE_DROPS = 32,               /* a window with a drop for so many events that arrived is ignored */
	HAK_ACE_BUSY = 64,                /* refills, or batches, in a window that can be judged */
	HAK_ACE_TRIAL = 4,                /* busy windows by which a change is judged ... */
	HAK_ACE_TRIAL_MOST = 80,          /* ... of so many at most */
	HAK_ACE_QUIET = 40,               /* windows without a case for what was learned, and it goes a step back */
	HAK_ACE_PATIENCE = 80,            /* windows in which a change that was undone is not tried again, at first ... */
	HAK_ACE_PATIENCE_MOST = 80 << 6,  /* ... and at most */
	HAK_ACE_WIDE = 16,                /* no target goes beyond so many times the one that it began with */
	HAK_ACE_BATCH_BYTES = 64 << 10,   /* nor a batch beyond these bytes */
};
#define HAK_UNIT ((size_t)1 << HAK_UNIT_SHIFT)
#define HAK_SUPER (HAK_UNIT * HAK_SUPER_UNITS)
#define HAK_RUN_MAX ((size_t)64 << 20)   /* larger blocks are mappings of their own */
#define HAK_SMALL_MAX ((size_t)1024)     /* the first table of sizes, by 8 bytes */
#define HAK_MID_MAX ((size_t)32768)      /* the second, by 256 bytes */
#define HAK_CLASS_MAX ((size_t)1 << 20)  /* the third, by 8 KiB */

#define HAK_ADD_CLASSES(name, lo, hi, steps, blocks, classes) +classes
#define HAK_NAME_TIER(name, lo, hi, steps, blocks, classes) HAK_TIER_##name,
enum { HAK_CLASSES = 0 HAK_TIERS(HAK_ADD_CLASSES) };
enum { HAK_TIERS(HAK_NAME_TIER) HAK_TIER_whale, HAK_TIER_COUNT };
#define HAK_NAME_POLICY(name, unit, of, windows, measure, sentence) HAK_POLICY_##name,
enum { HAK_POLICIES(HAK_NAME_POLICY) HAK_POLICY_COUNT };
#define HAK_NAME_ERROR(name, text) HAK_ERR_##name,
enum { HAK_ERRORS(HAK_NAME_ERROR) HAK_ERR_COUNT };

/* ================================================ compiler and platform ======================================== */

#define HAK_EXPORT __attribute__((visibility("default")))
#define HAK_COLD __attribute__((cold, noinline))
#define HAK_NOINLINE __attribute__((noinline))
#define HAK_INLINE static inline __attribute__((always_inline))
#define HAK_LINE __attribute__((aligned(64)))
#define HAK_UNUSED __attribute__((unused))
#define hak_likely(x) __builtin_expect(!!(x), 1)
#define hak_unlikely(x) __builtin_expect(!!(x), 0)

#ifndef HAK_VARIANT
#define HAK_VARIANT "release"
#endif
#ifndef HAK_DEBUG
#define HAK_DEBUG 0
#endif
#ifndef HAK_HARDENED
#define HAK_HARDENED 0
#endif
#ifdef HAK_NOLOCK
#define HAK_LOCKING 0 /* for the benchmark that shows what locks cost; one thread only */
#else
#define HAK_LOCKING 1
#endif

#if defined(__x86_64__) || defined(__i386__)
#define hak_pause() __builtin_ia32_pause()
#else
#define hak_pause() ((void)0)
#endif

/* Eight bytes of memory as a number, without the first few of them. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define hak_drop_bytes(v, n) ((v) >> (n) * 8)
#else
#define hak_drop_bytes(v, n) ((v) << (n) * 8)
#endif

#ifndef MREMAP_MAYMOVE
#error "hakmem needs Linux"
#endif
_Static_assert(sizeof(void *) == 8, "hakmem needs 64-bit addresses");

#define hak_assert(x) ((void)(!HAK_DEBUG || hak_likely(x) || (hak_assert_failed(#x, __LINE__), 0)))

/* ================================================== atomics and locks ========================================== */

#ifdef HAK_PTHREAD_LOCKS
/* A build for helgrind, of P0 only: it knows mutexes but no lock of ours, and nothing of memory orders.  So the locks
 * are mutexes, a release is said to come before the acquire that sees it, and what is read without a lock is declared,
 * object by object, in hak_hg_declare. */
#include <valgrind/helgrind.h>
#define hak_hg_before(p) ({ ANNOTATE_HAPPENS_BEFORE(p); (void)0; })
#define hak_hg_after(p, loaded) ({ __typeof__(*(p)) loaded_ = (loaded); ANNOTATE_HAPPENS_AFTER(p); loaded_; })
typedef struct hak_lock_word { pthread_mutex_t mutex; } hak_lock_word_t;
#else
#define hak_hg_before(p) ((void)0)
#define hak_hg_after(p, loaded) (loaded)
typedef uint32_t hak_lock_word_t; /* 0 free, 1 held, 2 held and somebody may sleep, 3 kept by a thread that ends the process */
#endif

/* The only memory orders of the file.
 *   relaxed   counters, indices and unit words: a reader may see an old value, and looks again under a lock
 *   acquire / release   publication of structs, and locks
 *   acq_rel   the inbox: a push releases the batch, a drain acquires all of them */
#define hak_load(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define hak_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define hak_load_acquire(p) hak_hg_after((p), __atomic_load_n((p), __ATOMIC_ACQUIRE))
#define hak_store_release(p, v) (hak_hg_before(p), __atomic_store_n((p), (v), __ATOMIC_RELEASE))
#define hak_exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
#define hak_add_shared(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define hak_sub_shared(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELAXED)
#define hak_cas(p, expect, v) __atomic_compare_exchange_n((p), (expect), (v), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)
/* A counter with one writer at a time: no locked instruction. */
#define hak_count(p, n) hak_store((p), hak_load(p) + (n))

typedef struct hak_lock {
	hak_lock_word_t word;
	uint64_t taken;     /* acquisitions: written by the holder */
	uint64_t contended; /* of these, those that waited: written by the holder */
} hak_lock_t;

/* The thread that is in fork, by the address of its hak_thread.  It holds every lock from the prepare handler to those
 * of parent and child; other libraries' handlers that run in between may allocate, and then lock and unlock nothing. */
static const void *hak_fork_thread;
static _Thread_local const char hak_thread __attribute__((tls_model("initial-exec")));
#define hak_fork_is_here() (hak_unlikely(hak_load(&hak_fork_thread) != NULL) && hak_fork_thread_is_self())
static inline bool hak_fork_thread_is_self(void) { return hak_load(&hak_fork_thread) == &hak_thread; }

/* That thread ends the process on account of a misuse.  It may hold locks, and may still allocate, in a handler of
 * SIGABRT; it unlocks nothing any more, so that the others come to rest. */
static bool hak_dying;

/* 1 in a page that the system wipes in a child: 0 in one that came to be without fork's handlers (clone as a system
 * call, _Fork).  NULL: the system knows no such pages. */
static uint32_t *hak_fork_page;

#ifndef HAK_PTHREAD_LOCKS
/* A child without fork's handlers in which this is the only thread waits for a lock: whoever held it was left behind,
 * in the middle of a change, and nobody will ever let go.  Better to say so than to hang. */
static HAK_COLD void hak_lock_check_orphaned(const hak_lock_t *l)
{
	static const char text[] = "hakmem: this process was cloned without fork() while another thread was allocating, and "
	                           "cannot allocate: it may only call exec\n";
	struct statx tasks; /* by number: stat() has a newer version in glibc than the oldest that we run on */
	if (syscall(SYS_statx, -1, "/proc/self/task", 0, STATX_NLINK, &tasks) || tasks.stx_nlink != 3) /* ., .., one thread */
		return;
	if (hak_load(&l->word) == 0) /* another thread let go of it before it ended */
		return;
	if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {
		/* nobody to tell */
	}
	abort();
}

static inline bool hak_lock_grab(hak_lock_t *l)
{
	uint32_t zero = 0;
	return hak_cas(&l->word, &zero, 1u);
}

/* A lock that another thread may hold: waited for by a thread that is dying, but not for long, as it may be its own, or
 * wait for one of its own. */
static HAK_COLD void hak_lock_wait_dying(hak_lock_t *l)
{
	const struct timespec ms = {.tv_nsec = 1000000};
	int saved = errno;
	uint32_t zero = 0;

	for (int i = 0; i < 50 && hak_load(&l->word) != 3 && !hak_cas(&l->word, &zero, 3u); i++, zero = 0)
		nanosleep(&ms, NULL);
	hak_store(&l->word, 3u);
	errno = saved;
}

static HAK_COLD void hak_lock_wait(hak_lock_t *l)
{
	if (hak_fork_is_here()) {
		if (hak_load(&hak_dying))
			hak_lock_wait_dying(l);
		return;
	}
	/* A short spin only: with more threads than cores the holder is often not running. */
	for (int i = 0; i < 100; i++) {
		if (hak_load(&l->word) == 0 && hak_lock_grab(l))
			goto held;
		hak_pause();
	}
	while (hak_exchange(&l->word, 2u) != 0) {
		int saved = errno;
		if (hak_unlikely(hak_fork_page && hak_load(hak_fork_page) == 0))
			hak_lock_check_orphaned(l);
		syscall(SYS_futex, &l->word, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
		errno = saved;
	}
held:
	hak_count(&l->contended, 1u);
}

static inline void hak_lock_let_go(hak_lock_t *l)
{
	if (hak_unlikely(hak_exchange(&l->word, 0u) == 2)) {
		int saved = errno;
		syscall(SYS_futex, &l->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
		errno = saved;
	}
}

static void hak_lock_renew(hak_lock_t *l) { hak_store(&l->word, 0u); } /* fork's child: those that slept on it are gone */
#else
static bool hak_lock_grab(hak_lock_t *l) { return pthread_mutex_trylock(&l->word.mutex) == 0; }
static void hak_lock_let_go(hak_lock_t *l) { pthread_mutex_unlock(&l->word.mutex); }
static void hak_lock_renew(hak_lock_t *l) { hak_lock_let_go(l); }
static void hak_lock_wait(hak_lock_t *l)
{
	if (hak_fork_is_here())
		return;
	pthread_mutex_lock(&l->word.mutex);
	hak_count(&l->contended, 1u);
}
#endif

static inline void hak_lock_uncounted(hak_lock_t *l) /* for statistics, which would else see mostly themselves */
{
	if (HAK_LOCKING && hak_unlikely(!hak_lock_grab(l)))
		hak_lock_wait(l);
}

static inline void hak_lock(hak_lock_t *l)
{
	hak_lock_uncounted(l);
	hak_count(&l->taken, 1u);
}

static inline bool hak_lock_try(hak_lock_t *l)
{
	if (HAK_LOCKING && !hak_lock_grab(l))
		return false;
	hak_count(&l->taken, 1u);
	return true;
}

static inline void hak_unlock(hak_lock_t *l)
{
	if (HAK_LOCKING && !hak_fork_is_here())
		hak_lock_let_go(l);
}

/* ===================================================== types =================================================== */

/* What is known of one unit.  The head unit of a slab describes the slab; the first unit of a free run, the run (and
 * its last unit repeats len, so that a neighbour finds the start).  Written under the claim of the owner of the unit,
 * or under the page heap's lock while the unit is free or an orphan's. */
typedef struct hak_slab {
	struct hak_slab *next;   /* list that the slab or the free run stands in */
	struct hak_slab *prev;
	uint64_t *map;           /* bit set: block free; bits[] or a row of the superslab's maps */
	char *base;              /* address of the unit: constant */
	uint32_t unit;           /* its index in the unit table: constant */
	uint32_t used;           /* blocks out: live, cached or in transit */
	uint32_t carved;         /* blocks ever out; those beyond were never touched since the slab was made */
	uint32_t free;           /* bits set in map */
	uint32_t len;            /* units of the slab or run */
	uint16_t hint;           /* no bit is set in a word of map below this one */
	uint16_t purged;         /* its free blocks have been purged, and no block was freed since */
	uint8_t class;
	uint8_t back;            /* units back to the head of the slab */
	uint8_t where;           /* HAK_IN_...: which list */
	uint32_t dirty;          /* free run: units that are dirty */
	union {
		uint64_t bits[HAK_INLINE_BITS / 64]; /* slab: bitmap of up to 512 blocks */
		struct {                             /* free run with dirty units: its place in the order of age */
			struct hak_slab *older, *newer;
			uint64_t stamp;                  /* ms: when its larger part was freed */
		};
		uint64_t asked;                      /* a large block, hardened: bytes that its caller asked for */
	};
} hak_slab_t;
_Static_assert(sizeof(hak_slab_t) == 136 || sizeof(hak_slab_t) == 128, "slab struct: two cache lines");

enum { HAK_IN_NONE, HAK_IN_CURRENT, HAK_IN_PARTIAL, HAK_IN_FULL, HAK_IN_FREE };

typedef struct hak_list {
	hak_slab_t *head, *tail;
} hak_list_t;

/* Hardened: what is known of one block, in a word beside its slab.  Low 8 bits: how it stands; above: the bytes that
 * its caller asked for, or the thread that freed it.  Relaxed: the caller of malloc and that of free write it. */
enum { HAK_NOTE_NEW, HAK_NOTE_LIVE, HAK_NOTE_FREED };
typedef uint32_t hak_note_t;
#define hak_note_make(state, value) ((hak_note_t)((uint32_t)(value) << 8 | (state)))
#define hak_note_state(note) ((note)&255u)
#define hak_note_value(note) ((note) >> 8)

/* Metadata of a superslab.  Never unmapped; maps is touched only by classes below 128 bytes. */
typedef struct hak_super {
	uint64_t dirty;                     /* bit for each unit: has memory behind it.  Page heap's lock */
	hak_slab_t unit[HAK_SUPER_UNITS];
	uint64_t map[HAK_SUPER_UNITS][HAK_MAP_WORDS];
	hak_note_t note[HAK_SUPER_UNITS][HAK_HARDENED ? HAK_NOTES : 0]; /* by the head unit of a slab */
} hak_super_t;

typedef struct hak_class {
	uint64_t reciprocal;  /* ceil(2^40 / size): offset -> index, exact below 2^20 */
	uint32_t size;        /* bytes of a block */
	uint32_t blocks;      /* in a slab */
	uint16_t units;       /* of a slab */
	uint16_t first, most; /* capacity of a stack: at first, and at most */
	uint16_t small, large;/* where the two regions of slots begin (their NULL slot) */
	uint16_t batch;       /* blocks of a refill at most */
	uint8_t tier;
	bool cached;          /* the tier's switch is on */
	bool plain;           /* hardened: slabs of one unit, level 1: the fast paths look at its notes */
} hak_class_t;

/* Pointers on their way to the heap that owns their slabs. */
typedef struct hak_batch {
	struct hak_batch *next;
	uint32_t count;
	uint32_t bytes;
	void *block[HAK_REMOTE_BLOCKS];
} hak_batch_t;
_Static_assert(sizeof(hak_batch_t) == 1024, "a batch is 1 KiB");

/* A heap's slabs of one class, and its counts.  Claim, unless the line says owner. */
typedef struct hak_bin {
	hak_slab_t *current; /* taken from first */
	hak_list_t partial;  /* slabs with a free block: taken from the head, new ones to the tail, so that they may empty */
	hak_list_t full;
	uint64_t slabs;
	uint64_t used;       /* blocks out of these slabs */
	uint64_t received;   /* blocks that came in batches */
	uint64_t claimed;    /* blocks freed by a thread without a heap, or through the shared heap */
	uint64_t misses;     /* owner: slow allocations */
	uint64_t filled;     /* owner: blocks put into the stack by slow paths */
	uint64_t flushed;    /* owner: blocks taken from the stack by slow paths */
	uint64_t direct;     /* owner: blocks freed past the stack */
	uint64_t sent;       /* owner: blocks freed into batches */
	uint64_t strayed;    /* owner: blocks put into batches that were freed into the stack before their slab was lost */
	uint64_t folded;     /* owner: allocations counted before the count in v was last cut */
	uint16_t refills;    /* owner: since the capacity was last thought about */
	uint16_t flushes;    /* owner: likewise */
	uint32_t untold_refills; /* owner: since the last event of this class */
	uint32_t untold_flushes; /* owner: likewise */
} hak_bin_t;

/* A refill, as ACE hears of it. */
enum { HAK_FROM_NOTHING, HAK_FROM_INBOX, HAK_FROM_BITMAP, HAK_FROM_CARVE, HAK_FROMS };
typedef struct hak_event {
	uint32_t ms;                 /* since the first call */
	uint16_t refills, flushes;   /* of this class since the event before, this one included */
	uint16_t batch;              /* blocks that this refill brought */
	uint16_t level, capacity;    /* of the stack after it */
	uint8_t class;
	uint8_t from;                /* HAK_FROM_...: where most of them were */
} hak_event_t;
_Static_assert(sizeof(hak_event_t) == 16, "an event is 16 bytes");

/* The way of events from one heap to the learning thread: one side puts, one gets, nobody waits.  A heap struct, and
 * with it the putting side, changes hands between threads; each puts under the heap's claim, so one has seen all that
 * the one before it did.  Touched only by hak_ring_... */
typedef struct hak_ring {
	uint32_t head;            /* claim: events ever put; published with release */
	uint32_t dropped;         /* claim: events that found it full */
	uint32_t tail HAK_LINE;   /* learning thread: events ever taken out; published with release */
	uint32_t every;           /* learning thread: refills of a class that an event stands for */
	hak_event_t event[HAK_RING] HAK_LINE;
} hak_ring_t;

#define HAK_DECLARE_COUNTER(name, unit, view, help) uint64_t name;
typedef struct hak_heap_counters {
	HAK_HEAP_COUNTERS(HAK_DECLARE_COUNTER)
} hak_heap_counters_t;

typedef struct hak_heap {
	uint32_t tag;                       /* id << 8; a unit word less this is the class if the heap owns the unit */
	uint32_t id;
	uint64_t v[HAK_CLASSES];            /* owner: 16 bits stack index, 48 bits count of allocations */
	uint16_t top[HAK_CLASSES];          /* owner: index at which the stack is full */
	uint16_t floor[HAK_CLASSES];        /* owner: index of the NULL below the stack */
	uint32_t tick;                      /* owner: slow paths until the clock is looked at */
	uint32_t spares;                    /* owner: batches in spare */
	hak_batch_t *spare;                 /* owner: empty batches */
	hak_batch_t *out[HAK_OUT_SLOTS];    /* owner: batches being filled */
	uint32_t out_owner[HAK_OUT_SLOTS];  /* owner: for which heap */
	uint64_t out_stamp;                 /* owner: ms when what is pending was last posted */
	uint32_t helped;                    /* owner: heaps looked at for a stale inbox, in turn */
	uint32_t thread;                    /* owner: its thread's id for the system, 0 without one */
	hak_ring_t *ring;                   /* constant; NULL: it tells ACE nothing */
	bool running;                       /* a thread has it: heaps lock */
	uint8_t dying;                      /* owner: how often its destructor has put itself off */
	struct hak_heap *next_free;         /* heaps lock */
	hak_lock_t claim HAK_LINE;
	uint64_t used_bytes[HAK_TIER_whale]; /* claim: bytes of blocks out of its slabs, by tier */
	uint64_t told_bytes[HAK_TIER_whale]; /* claim: what the gauges know of that */
	uint64_t told_low[HAK_TIER_whale];  /* claim: they are told when it leaves the range that begins here ... */
	uint64_t told_span[HAK_TIER_whale]; /* claim: ... and is so long */
	uint64_t peak_bytes;                /* claim: most of the sum of used_bytes since the last settling */
	uint32_t left_alone;                /* claim: full inboxes that others have emptied since the owner's last slow path */
	uint32_t lost;                      /* claim: its slabs were disowned, and its stacks not yet sorted out */
	hak_bin_t bin[HAK_CLASSES];
	hak_heap_counters_t count;
	hak_batch_t *inbox HAK_LINE;        /* anybody: pushed with CAS; HAK_CLOSED when no thread has the heap */
	uint64_t inbox_bytes;               /* anybody: atomic */
	uint64_t inbox_stamp;               /* whoever pushes first: ms when the inbox ceased to be empty */
	void *slot[] HAK_LINE;              /* owner: the stacks; slot[0] is NULL */
} hak_heap_t;

#define HAK_CLOSED ((hak_batch_t *)1)

/* Unit words. */
enum {
	HAK_OWNER_NONE = 0,   /* free, or not committed */
	HAK_OWNER_RUN = 1,    /* a large block; the low byte says which unit of it */
	HAK_OWNER_ORPHAN = 2, /* a slab without a heap; the low byte is the class */
	HAK_OWNER_SHARED = 3, /* the heap that threads without one share */
	HAK_OWNER_FIRST = 4,  /* the first thread's heap */
};
enum { HAK_RUN_HEAD = HAK_OWNER_RUN << 8, HAK_RUN_BODY, HAK_RUN_PURGING };
#define hak_word_owner(w) ((w) >> 8)
#define hak_word_class(w) ((w)&255u)

typedef struct hak_range {
	char *base;      /* of the unit `first` */
	uint32_t first;  /* index of its first unit */
	uint32_t units;  /* reserved */
	uint32_t top;    /* committed: page heap's lock */
	size_t mapped;   /* bytes: more than its units' if the system did not take the ends back */
} hak_range_t;

typedef struct hak_whale {
	struct hak_whale *next; /* in its bucket, in the kept list or among the unused */
	char *base;             /* of the block and of the mapping */
	size_t len;             /* mapped bytes */
	size_t asked;           /* hardened: of these, those that its caller asked for */
	uint64_t stamp;         /* ms when it was freed */
} hak_whale_t;

/* The free runs by length: exact below 64 units, four bins to a doubling above. */
enum { HAK_RUN_BINS = 64 + 4 * 20, HAK_RUN_WORDS = (HAK_RUN_BINS + 63) / 64, HAK_WHALE_BUCKETS = 4096 };
enum { HAK_CLEAN, HAK_DIRTY };

#define HAK_DECLARE_OPTION(name, type, unit, def, lo, hi, when, help, use) int64_t name;
typedef struct hak_options {
	HAK_OPTIONS(HAK_DECLARE_OPTION)
} hak_options_t;

/* ===================================================== state =================================================== */

#define HAK_DEFAULT_OPTION(name, type, unit, def, lo, hi, when, help, use) .name = (def),
static hak_options_t hak_option = {HAK_OPTIONS(HAK_DEFAULT_OPTION)}; /* set at start; relaxed after */

/* The tables that free believes.  In the hardened library they stand together, between guards. */
#if HAK_HARDENED
static struct {
	char before[HAK_GUARD];
#define HAK_TABLE(type, name, count) type name[count];
#else
#define HAK_TABLE(type, name, count) static type hak_##name[count];
#endif
HAK_TABLE(uint32_t, unit, HAK_UNITS_MAX)                             /* the unit table */
HAK_TABLE(hak_super_t *, super, HAK_UNITS_MAX / HAK_SUPER_UNITS)     /* metadata; NULL: not committed */
HAK_TABLE(hak_heap_t *, heap, HAK_HEAPS_MAX)                         /* by id; set once */
HAK_TABLE(hak_class_t, class, HAK_CLASSES)                           /* set at start, as are the next three */
HAK_TABLE(uint8_t, class_small, HAK_SMALL_MAX / 8 + 1)
HAK_TABLE(uint8_t, class_mid, HAK_MID_MAX / 256 + 1)
HAK_TABLE(uint8_t, class_big, HAK_CLASS_MAX / 8192 + 1)
#if HAK_HARDENED
	char behind[HAK_GUARD] __attribute__((aligned(HAK_GUARD)));
} hak_tables __attribute__((aligned(HAK_GUARD)));
#define hak_unit hak_tables.unit
#define hak_super hak_tables.super
#define hak_heap hak_tables.heap
#define hak_class hak_tables.class
#define hak_class_small hak_tables.class_small
#define hak_class_mid hak_tables.class_mid
#define hak_class_big hak_tables.class_big
#endif

/* What the fast path reads: set once by the first call, before any heap exists. */
static struct {
	uintptr_t base; /* address of unit 0 of the table; the first range begins at unit 64 */
	size_t units;   /* units up to the end of the first range */
} hak_fast HAK_LINE;

static struct {
	uint32_t ready;    /* 0 nothing, 1 being set up, 2 done */
	size_t os_page;
	size_t slots;      /* in a heap struct */
	uint64_t start;    /* ms: when the first call came */
	pthread_key_t key; /* its destructor is the end of a thread */
	bool has_key;
	uint64_t secret[2]; /* hardened: for the order of reuse, odd, and for the seals */
} hak_boot;

static struct { /* lock: heaps */
	hak_lock_t lock HAK_LINE;
	uint32_t made;      /* ids up to this one have a struct; published with release */
	uint32_t running;
	uint32_t idle;      /* structs in free */
	uint64_t exited;
	hak_heap_t *free;
} hak_heaps;

static struct { /* lock: page heap */
	hak_lock_t lock HAK_LINE;
	hak_lock_t purging;                              /* held by the one thread that gives memory back */
	hak_range_t range[HAK_RANGES_MAX];
	uint32_t ranges;                                 /* published with release: free reads it without the lock */
	hak_list_t bin[2][HAK_RUN_BINS];                 /* free runs: clean, and with dirty units */
	uint64_t nonempty[2][HAK_RUN_WORDS];
	uint64_t runs;                                   /* free runs */
	hak_slab_t *oldest, *newest;                     /* dirty runs by age */
	uint64_t used_units, dirty_units, clean_units;   /* in use; free */
	uint64_t regret_units;                           /* kept beyond the option, since what was purged came back at once */
	uint64_t regret_stamp;                           /* ms when that was last halved */
	uint64_t recent_units, recent_stamp;             /* purged of late, and when the last of it was */
	uint64_t purging_dirty, purging_clean;           /* in the hands of the purging thread */
	uint64_t peak_bytes;                             /* most bytes in use, ever */
	uint64_t peak_shown;                             /* likewise, since the peaks were reset */
	uint64_t orphan_untold[HAK_TIER_whale];          /* bytes freed in orphans that the gauges do not know of */
	uint64_t supers;
	uint64_t large_blocks, large_units, large_allocs, large_frees;
	uint64_t large_units_alloced, large_units_freed; /* ever */
	uint64_t purges, purged_units;
	uint64_t taken_units, fresh_units;               /* ever handed out; of these, those that were clean */
	uint64_t aged_units;                             /* of purged_units, those that went for their age */
	hak_list_t orphan[HAK_CLASSES];                  /* slabs without a heap that are worth taking over */
	hak_list_t orphan_full[HAK_CLASSES];
	uint64_t orphans[HAK_CLASSES], orphan_used[HAK_CLASSES];
	uint64_t orphan_received[HAK_CLASSES], orphan_claimed[HAK_CLASSES];
} hak_page;

static struct { /* anybody: atomic */
	uint64_t used[HAK_TIER_COUNT]; /* bytes of blocks out of their slabs, but for what heaps have not told yet */
	uint64_t peak[HAK_TIER_COUNT]; /* most of these since the peaks were reset */
	uint64_t peak_all;             /* most of their sum */
} hak_gauge HAK_LINE;

static struct { /* lock: batch pool */
	hak_lock_t lock HAK_LINE;
	hak_batch_t *free;
	uint64_t count;
} hak_pool;

static struct { /* lock: whales */
	hak_lock_t lock HAK_LINE;
	hak_whale_t *bucket[HAK_WHALE_BUCKETS];
	hak_whale_t *kept, *unused; /* kept: newest first */
	uint32_t kept_count;
	uint64_t kept_bytes, live, bytes, allocs, frees, hits;
	uint64_t alloc_bytes, freed_bytes; /* ever */
	uint64_t fresh_bytes;              /* mapped, ever */
	uint64_t aged_bytes, over_bytes;   /* unmapped for their age, and for being too many, ever */
} hak_whales;

static struct { /* lock: metadata */
	hak_lock_t lock HAK_LINE;
	char *at, *end;
	uint64_t bytes;
} hak_meta;

/* What a window has brought; those that only rise are also kept as they stood at its end. */
typedef struct hak_ace_sums {
	uint64_t allocs[HAK_CLASSES];                   /* blocks handed out */
	uint64_t remote_frees, batches;                 /* batches that left, however they arrived */
	uint64_t taken, fresh, aged, over;              /* bytes of units: taken, clean ones of these; purged for age, for size */
	uint64_t whale_taken, whale_fresh, whale_aged, whale_over; /* bytes of whales, likewise */
	uint64_t dropped;
} hak_ace_sums_t;
typedef struct hak_ace_class { /* of events, in one window */
	uint64_t refills, flushes;
	uint64_t from[HAK_FROMS];   /* refills by where most of their blocks were */
	uint32_t capacity;          /* the smallest that was seen; 0: none */
} hak_ace_class_t;

/* What is known of one target. */
typedef struct hak_learner {
	uint64_t sum, recent;       /* of the measure over the windows of one opinion; in the last busy window */
	uint64_t old, before, after;/* a change on trial: the target and the measure before it, the sum of those since */
	uint32_t same;              /* windows running that wanted more */
	uint32_t quiet;             /* windows that did not, while the target is above where it began */
	uint32_t left, busy;        /* a change on trial: windows that it has left, busy ones that it had */
	uint32_t silent, patience;  /* windows in which nothing is tried; how many these were the last time */
	uint32_t settled;           /* a change on trial: what was under way when it came is over */
} hak_learner_t;

typedef struct hak_decision { /* introspection ABI: record "decision" */
	uint64_t ms;
	const char *policy;
	uint32_t size;
	uint64_t old, new;
	const char *unit, *did;
	uint64_t before, after;
	uint32_t windows;
	uint64_t evidence;
	const char *why;
} hak_decision_t;

static struct { /* lock: ACE.  Touched only by hak_ace_..., the lock also by fork */
	hak_lock_t lock HAK_LINE;
	bool refused;               /* no thread could be made: it stays off */
	hak_ace_sums_t last, window;
	hak_ace_class_t class[HAK_CLASSES];
	hak_learner_t learner[HAK_POLICY_COUNT][HAK_CLASSES];
	uint64_t pool[HAK_POLICY_COUNT]; /* purge, retain, bigcache: bytes given back of late and not wanted again yet */
	uint64_t aged_at;           /* ms: when memory was last given back for its age */
	uint64_t events, windows, ignored, changes, undone;
	uint64_t decided;           /* decisions ever; the last HAK_ACE_LOG stand in log */
	hak_decision_t log[HAK_ACE_LOG];
} hak_ace;

/* Threads start on a heap that is empty and constant: its stacks have nothing to pop and its tag owns no unit, so
 * that the first malloc and free take the slow path, and no init test stands on the fast one. */
static const hak_heap_t hak_heap_none = {.tag = 0xFFFFFF00u, .slot = {NULL}};
static const hak_heap_t hak_heap_dead = {.tag = 0xFFFFFF00u, .slot = {NULL}}; /* the same, after the thread's end */
#define HAK_HEAP_START ((hak_heap_t *)(uintptr_t)&hak_heap_none)
static _Thread_local hak_heap_t *hak_self __attribute__((tls_model("initial-exec"))) = HAK_HEAP_START;

/* ====================================================== OS ===================================================== */

HAK_INLINE uint32_t hak_min32(uint32_t a, uint32_t b) { return a < b ? a : b; }
HAK_INLINE uint32_t hak_max32(uint32_t a, uint32_t b) { return a > b ? a : b; }
HAK_INLINE size_t hak_round_up(size_t n, size_t to) { return (n + to - 1) & ~(to - 1); } /* to: a power of two */

static uint64_t hak_os_now(void) /* ms */
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* The calls below are all that hakmem asks the system for memory with.  In the debug variant tests can have each kind
 * refused from its nth call on, HALF: once the first half of what was asked for is done. */
enum {
	HAK_CALL_MMAP = 1, HAK_CALL_MREMAP = 2, HAK_CALL_MADVISE = 4, HAK_CALL_MUNMAP = 8, HAK_CALL_MPROTECT = 16,
	HAK_CALL_HALF = 32,
};

#if HAK_DEBUG
static struct { /* anybody: atomic */
	uint32_t calls;
	uint64_t made, first, count;
} hak_refusal;

/* From now on, of the calls in the set `calls` the nth and those after it fail, `count` of them in all.  Returns how
 * many there were since it was last called. */
HAK_EXPORT uint64_t hak_debug_fail(uint32_t calls, uint64_t nth, uint64_t count)
{
	uint64_t made = hak_load(&hak_refusal.made);
	hak_store(&hak_refusal.calls, 0u);
	hak_store(&hak_refusal.made, 0u);
	hak_store(&hak_refusal.first, nth);
	hak_store(&hak_refusal.count, count);
	hak_store(&hak_refusal.calls, calls);
	return made;
}

static bool hak_os_refuses(uint32_t call)
{
	uint64_t n;
	if (!(hak_load(&hak_refusal.calls) & call))
		return false;
	n = hak_add_shared(&hak_refusal.made, 1u) + 1;
	if (n < hak_load(&hak_refusal.first) || n - hak_load(&hak_refusal.first) >= hak_load(&hak_refusal.count))
		return false;
	errno = call == HAK_CALL_MADVISE ? EINVAL : ENOMEM;
	return true;
}

static size_t hak_os_half(size_t len) /* what is done of a call that is refused; 0: nothing */
{
	return hak_load(&hak_refusal.calls) & HAK_CALL_HALF ? len / 2 & ~(hak_boot.os_page - 1) : 0;
}
#else
#define hak_os_refuses(call) false
#define hak_os_half(len) 0
#endif

static void *hak_os_map(size_t len, int protection) /* NULL: refused */
{
	void *p = hak_os_refuses(HAK_CALL_MMAP) ? MAP_FAILED
	        : mmap(NULL, len, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

/* False: refused, and all of it is mapped still.  Where a process has as many mappings as it may (vm.max_map_count),
 * the system takes no piece out of the middle of one. */
static bool hak_os_unmap(void *p, size_t len)
{
	return !len || (!hak_os_refuses(HAK_CALL_MUNMAP) && munmap(p, len) == 0);
}

/* len bytes at a multiple of align (at least an OS page).  *whole, *whole_len: what is mapped; it is more if the system
 * does not take the ends back. */
static void *hak_os_map_aligned(size_t len, size_t align, int protection, char **whole, size_t *whole_len)
{
	size_t slack = align > hak_boot.os_page ? align : 0, head, tail;
	char *p, *q;
	if (len + slack < len || !(p = hak_os_map(len + slack, protection)))
		return NULL;
	q = (char *)hak_round_up((uintptr_t)p, slack ? align : 1);
	head = (size_t)(q - p);
	tail = slack - head;
	head = hak_os_unmap(p, head) ? 0 : head;
	tail = hak_os_unmap(q + len, tail) ? 0 : tail;
	*whole = q - head;
	*whole_len = head + len + tail;
	return q;
}

static bool hak_os_commit(void *p, size_t len)
{
	bool refused = hak_os_refuses(HAK_CALL_MPROTECT);
	return mprotect(p, refused ? hak_os_half(len) : len, PROT_READ | PROT_WRITE) == 0 && !refused;
}

static void *hak_os_remap(void *p, size_t len, size_t to) /* NULL: refused */
{
	void *q = hak_os_refuses(HAK_CALL_MREMAP) ? MAP_FAILED : mremap(p, len, to, MREMAP_MAYMOVE);
	return q == MAP_FAILED ? NULL : q;
}

/* Moves OS pages to a mapping of their own.  What is left behind stays mapped and reads as zero, so that nobody can
 * map into our range. */
static void *hak_os_move(void *p, size_t len) /* NULL: refused */
{
	void *q = hak_os_refuses(HAK_CALL_MREMAP) ? MAP_FAILED
	        : mremap(p, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	return q == MAP_FAILED ? NULL : q;
}

static bool hak_os_advise(void *p, size_t len, int advice)
{
	bool refused = hak_os_refuses(HAK_CALL_MADVISE);
	return madvise(p, refused ? hak_os_half(len) : len, advice) == 0 && !refused;
}

/* Reads as zero after.  Refused: each OS page reads as zero or as before. */
static bool hak_os_purge(void *p, size_t len) { return hak_os_advise(p, len, MADV_DONTNEED); }

static void hak_os_forbid(void *p, size_t len) /* whoever touches it gets a SIGSEGV; best effort */
{
	mprotect(p, len, PROT_NONE);
}

HAK_UNUSED static HAK_COLD void hak_os_freeze(void *p, size_t len) /* whoever writes to it gets a SIGSEGV; best effort */
{
	mprotect(p, len, PROT_READ);
}

static HAK_COLD void hak_os_random(void *out, size_t len)
{
	int saved = errno;
	if (syscall(SYS_getrandom, out, len, GRND_NONBLOCK) != (long)len)
		memcpy(out, (const void *)getauxval(AT_RANDOM), len); /* early at boot: what the system gave this process */
	errno = saved;
}

static HAK_COLD uint64_t hak_os_memory(void)
{
	struct sysinfo s;
	return sysinfo(&s) ? 0 : (uint64_t)s.totalram * s.mem_unit;
}

static HAK_COLD uint64_t hak_os_address_limit(void)
{
	struct rlimit r;
	return getrlimit(RLIMIT_AS, &r) || r.rlim_cur == RLIM_INFINITY ? UINT64_MAX : r.rlim_cur;
}

/* =================================================== messages ================================================== */

static HAK_COLD void hak_say(const char *line, int len)
{
	int saved = errno;
	for (ssize_t n; len > 0; line += n, len -= (int)n)
		if ((n = write(STDERR_FILENO, line, (size_t)len)) <= 0)
			break;
	errno = saved;
}

#define hak_sayf(...)                                                               \
	do {                                                                            \
		char line_[400];                                                            \
		int len_ = snprintf(line_, sizeof line_, __VA_ARGS__);                      \
		hak_say(line_, len_ < (int)sizeof line_ ? len_ : (int)sizeof line_ - 1);    \
	} while (0)

/* Other people's text for a message: what is not printable ASCII becomes a question mark, so that a value can neither
 * begin a line of its own nor reach the terminal. */
static HAK_COLD const char *hak_say_text(char *to, size_t size, const char *from, size_t len)
{
	size_t i;
	for (i = 0; i < len && i + 1 < size && from[i]; i++)
		to[i] = (char)(from[i] >= ' ' && from[i] <= '~' ? from[i] : '?');
	to[i] = '\0';
	return to;
}

static const char *const hak_error_texts[] = {
#define HAK_ERROR_TEXT(name, text) text,
	HAK_ERRORS(HAK_ERROR_TEXT)
};
static const char *const hak_error_names[] = {
#define HAK_ERROR_WORD(name, text) #name,
	HAK_ERRORS(HAK_ERROR_WORD)
};

static HAK_COLD void hak_assert_failed(const char *what, int line)
{
	hak_sayf("hakmem: line %d: assertion failed: %s\n", line, what);
	abort();
}

/* ==================================================== options ================================================== */

typedef struct hak_option_row { /* introspection ABI: record "option" */
	const char *name, *env, *type, *unit, *when, *help, *use;
	int64_t initial, least, most;
} hak_option_row_t;

static const char hak_env_prefix[] = "HAKMEM_";
#define HAK_OPTION_ROW(name, type, unit, def, lo, hi, when, help, use) {#name, NULL, #type, unit, #when, help, use, def, lo, hi},
static hak_option_row_t hak_option_rows[] = {HAK_OPTIONS(HAK_OPTION_ROW)};
#define HAK_OPTION_PLACE(name, type, unit, def, lo, hi, when, help, use) &hak_option.name,
static int64_t *const hak_option_places[] = {HAK_OPTIONS(HAK_OPTION_PLACE)};
enum { HAK_OPTION_COUNT = sizeof hak_option_rows / sizeof *hak_option_rows };

/* The value of a word of a mode, whose words stand in the unit's place; -1: it is none of them. */
static HAK_COLD int64_t hak_option_word(const char *words, const char *text)
{
	size_t len = strlen(text), n;
	for (int64_t value = 0;; value++, words += n + 1) {
		n = strcspn(words, "|");
		if (n == len && strncasecmp(words, text, n) == 0)
			return value;
		if (!words[n])
			return -1;
	}
}

static HAK_COLD bool hak_option_parse_text(const hak_option_row_t *row, const char *text, int64_t *out)
{
	static const struct { const char *word; int64_t value; } words[] = {
		{"true", 1}, {"yes", 1}, {"on", 1}, {"false", 0}, {"no", 0}, {"off", 0}};
	static const char suffixes[] = "KMGT";
	char *end;

	if (row->type[0] == 'b' && row->type[1] == 'o')
		for (size_t i = 0; i < sizeof words / sizeof *words; i++)
			if (strcasecmp(text, words[i].word) == 0)
				return *out = words[i].value, true;
	if (row->type[0] == 'm' && (*out = hak_option_word(row->unit, text)) >= 0)
		return true;
	int saved = errno;
	errno = 0;
	long long n = strtoll(text, &end, 10);
	bool good = end != text && errno == 0;
	errno = saved;
	if (good && *end && strcmp(row->type, "bytes") == 0) {
		const char *s = *end & ~32 ? strchr(suffixes, *end & ~32) : NULL;
		if (s && __builtin_mul_overflow(n, 1ll << (10 * (s - suffixes + 1)), &n))
			return false;
		if (s && (*++end == 'i' || *end == 'I'))
			end++;
		if (s && (*end == 'B' || *end == 'b'))
			end++;
	}
	*out = n;
	return good && *end == '\0';
}

/* Edit distance of two option names, for the name that was probably meant. */
static HAK_COLD unsigned hak_option_distance(const char *a, const char *b)
{
	unsigned row[64], n = (unsigned)strlen(b);
	if (n >= 64)
		return UINT_MAX;
	for (unsigned j = 0; j <= n; j++)
		row[j] = j;
	for (unsigned i = 1; *a; a++, i++) {
		unsigned diagonal = row[0];
		row[0] = i;
		for (unsigned j = 1; j <= n; j++) {
			unsigned above = row[j], best = diagonal + ((*a | 32) != (b[j - 1] | 32));
			best = hak_min32(best, hak_min32(above, row[j - 1]) + 1);
			row[j] = best;
			diagonal = above;
		}
	}
	return row[n];
}

static HAK_COLD void hak_option_read(const char *variable)
{
	static const char *const python[] = {
#define HAK_PYTHON_ENV_ROW(name) name,
		HAK_PYTHON_ENV(HAK_PYTHON_ENV_ROW)
	};
	const char *equals = strchr(variable, '=');
	const hak_option_row_t *near = NULL;
	unsigned nearest = 4; /* a name farther off was not meant */
	char name[64], text[101];
	size_t len;

	if (!equals)
		return;
	len = (size_t)(equals - variable);
	for (size_t i = 0; i < sizeof python / sizeof *python; i++)
		if (strlen(python[i]) == len && strncmp(variable, python[i], len) == 0)
			return;
	for (int i = 0; i < HAK_OPTION_COUNT; i++) {
		const hak_option_row_t *row = &hak_option_rows[i];
		int64_t value;
		if (strlen(row->env) == len && strncmp(variable, row->env, len) == 0) {
			bool good = hak_option_parse_text(row, equals + 1, &value) && value >= row->least && value <= row->most;
			*hak_option_places[i] = good ? value : row->initial; /* where a name stands twice, the last counts */
			if (!good && row->least == row->most)
				hak_sayf("hakmem: %s=%s: needs the %s library (python -m hakmem run --%s); ignored\n", row->env,
				         hak_say_text(text, sizeof text, equals + 1, SIZE_MAX), row->name, row->name);
			else if (!good && row->type[0] == 'm')
				hak_sayf("hakmem: %s=%s: must be one of %s; using %.*s\n", row->env,
				         hak_say_text(text, sizeof text, equals + 1, SIZE_MAX), row->unit, (int)strcspn(row->unit, "|"), row->unit);
			else if (!good)
				hak_sayf("hakmem: %s=%s: must be %s from %lld to %lld%s%s; using %lld\n", row->env,
				         hak_say_text(text, sizeof text, equals + 1, SIZE_MAX),
				         row->type[1] == 'o' ? "a switch (on, off)" : row->type[1] == 'y' ? "a number (64M, say)" : "a number",
				         (long long)row->least, (long long)row->most, *row->unit ? " " : "", row->unit, (long long)row->initial);
			return;
		}
	}
	hak_say_text(name, sizeof name, variable, len);
	for (int i = 0; i < HAK_OPTION_COUNT; i++) {
		unsigned d = hak_option_distance(name, hak_option_rows[i].env);
		if (d < nearest && d < strlen(hak_option_rows[i].name)) { /* not one of which no letter is left */
			nearest = d;
			near = &hak_option_rows[i];
		}
	}
	hak_sayf("hakmem: %s: no such option%s%s%s; ignored\n", name, near ? ", did you mean " : "", near ? near->env : "",
	         near ? "?" : "");
}

static HAK_COLD void hak_option_init(void)
{
	static char names[HAK_OPTION_COUNT][40];
	extern char **environ;

	for (int i = 0; i < HAK_OPTION_COUNT; i++) {
		char *at = names[i];
		for (const char *s = hak_env_prefix; *s; s++)
			*at++ = *s;
		for (const char *s = hak_option_rows[i].name; *s; s++)
			*at++ = (char)(*s >= 'a' && *s <= 'z' ? *s - 32 : *s);
		hak_option_rows[i].env = names[i];
	}
	if (getauxval(AT_SECURE)) /* setuid: the environment is somebody else's */
		return;
	for (char **e = environ; e && *e; e++)
		if (strncmp(*e, hak_env_prefix, sizeof hak_env_prefix - 1) == 0)
			hak_option_read(*e);
}

/* ================================================== size classes =============================================== */

static const struct hak_tier {
	const char *name;
	uint32_t least, most, steps, blocks, classes;
} hak_tier[] = {
#define HAK_TIER_ROW(name, lo, hi, steps, blocks, classes) {#name, lo, hi, steps, blocks, classes},
	HAK_TIERS(HAK_TIER_ROW)
	{"whale", (uint32_t)HAK_CLASS_MAX + 1, UINT32_MAX, 0, 0, 0},
};

HAK_INLINE uint32_t hak_class_of(size_t n) /* n <= HAK_CLASS_MAX */
{
	if (n <= HAK_SMALL_MAX)
		return hak_class_small[(n + 7) >> 3];
	if (n <= HAK_MID_MAX)
		return hak_class_mid[(n + 255) >> 8];
	return hak_class_big[(n + 8191) >> 13];
}

/* Units of a slab: the fewest that hold `least` blocks and waste a sixteenth at most. */
static HAK_COLD uint32_t hak_class_units(uint32_t size, uint32_t least)
{
	for (uint32_t units = 1;; units++) {
		uint32_t bytes = units << HAK_UNIT_SHIFT, blocks = bytes / size;
		if (blocks >= least && (bytes - blocks * size) * 16 <= bytes)
			return units;
	}
}

/* Fills the class table, the three size tables and the layout of the stacks from the rows of HAK_TIERS. */
static HAK_COLD void hak_class_init(void)
{
	const int64_t tier_on[] = {hak_option.tls_tiny, hak_option.tls_l2, hak_option.tls_l25};
	uint32_t c = 0, slot = 1;

	for (uint32_t t = 0; t < HAK_TIER_whale; t++) {
		const struct hak_tier *tier = &hak_tier[t];
		uint32_t size = t == 0 ? tier->least : hak_tier[t - 1].most + hak_tier[t - 1].most / tier->steps;
		while (size <= tier->most) {
			hak_class_t *k = &hak_class[c++];
			uint32_t octave = 1u << (31 - __builtin_clz(size));
			k->size = size;
			k->tier = (uint8_t)t;
			k->units = (uint16_t)hak_class_units(size, tier->blocks);
			k->blocks = ((uint32_t)k->units << HAK_UNIT_SHIFT) / size;
			k->reciprocal = (((uint64_t)1 << 40) + size - 1) / size;
			k->cached = tier_on[t] != 0;
			k->plain = k->units == 1 && hak_option.hardened < 2;
			k->most = (uint16_t)hak_max32(hak_min32(HAK_STACK_BYTES / size, HAK_STACK_MAX), 2);
			k->first = (uint16_t)hak_min32(hak_max32(hak_min32(HAK_STACK_FIRST_BYTES / size, HAK_STACK_FIRST), 4), k->most);
			k->batch = (uint16_t)hak_max32(hak_min32(HAK_BATCH_BYTES / size, HAK_BATCH_MOST), 1);
			k->small = (uint16_t)slot;
			slot += k->first + 1u;
			size += size < 16 ? 8 : hak_max32(octave / tier->steps, 16);
		}
	}
	hak_assert(c == HAK_CLASSES);
	/* The large regions come last: a page of them is touched only by a class that has outgrown its small one. */
	for (c = 0; c < HAK_CLASSES; c++) {
		hak_class[c].large = hak_class[c].small;
		if (hak_class[c].most > hak_class[c].first) {
			hak_class[c].large = (uint16_t)slot;
			slot += hak_class[c].most + 1u;
		}
	}
	hak_assert(slot <= UINT16_MAX);
	hak_boot.slots = slot;

	for (uint32_t i = 0, k = 0; i < sizeof hak_class_small; i++) {
		while (hak_class[k].size < i * 8)
			k++;
		hak_class_small[i] = (uint8_t)k;
	}
	for (uint32_t i = 0, k = 0; i < sizeof hak_class_mid; i++) {
		while (hak_class[k].size < i * 256)
			k++;
		hak_class_mid[i] = (uint8_t)k;
	}
	for (uint32_t i = 0, k = 0; i < sizeof hak_class_big; i++) {
		while (hak_class[k].size < i * 8192)
			k++;
		hak_class_big[i] = (uint8_t)k;
	}
}

/* ==================================================== targets ================================================== */

/* What slow paths go by where ACE may have learned better than the tables and options say.  Off, and in shadow, nobody
 * publishes anything.  A value holds from the next refill, batch or purge on: what is cached already stays as it is. */
static struct { /* lock: ACE, or the first call; relaxed for readers.  Touched only by hak_target_... */
	uint64_t value[HAK_POLICY_COUNT][HAK_CLASSES]; /* policies that are not of a class: [0] */
} hak_target;

HAK_INLINE uint64_t hak_target_read(int policy, uint32_t c) { return hak_load(&hak_target.value[policy][c]); }
static HAK_COLD void hak_target_publish(int policy, uint32_t c, uint64_t value)
{
	hak_store(&hak_target.value[policy][c], value);
}

HAK_INLINE uint32_t hak_target_batch(uint32_t c) { return (uint32_t)hak_target_read(HAK_POLICY_batch, c); }
HAK_INLINE uint32_t hak_target_capacity(uint32_t c) { return (uint32_t)hak_target_read(HAK_POLICY_capacity, c); } /* 0: none */
HAK_INLINE uint64_t hak_target_remote(void) { return hak_target_read(HAK_POLICY_remote, 0); }
HAK_INLINE uint64_t hak_target_retain(void) { return hak_target_read(HAK_POLICY_retain, 0); }
HAK_INLINE uint64_t hak_target_bigcache(void) { return hak_target_read(HAK_POLICY_bigcache, 0); } /* bytes of kept whales */
HAK_INLINE uint64_t hak_target_purge(void) { return hak_target_read(HAK_POLICY_purge, 0); }

/* Where a target begins, and goes back to: the class table, the geometry, the user's options. */
static HAK_COLD uint64_t hak_target_home(int policy, uint32_t c)
{
	const uint64_t home[] = {
		[HAK_POLICY_batch] = hak_class[c].batch,
		[HAK_POLICY_capacity] = 0,
		[HAK_POLICY_remote] = HAK_REMOTE_BYTES,
		[HAK_POLICY_retain] = (uint64_t)hak_load(&hak_option.retain),
		[HAK_POLICY_bigcache] = (uint64_t)hak_load(&hak_option.retain),
		[HAK_POLICY_purge] = (uint64_t)hak_load(&hak_option.purge_ms),
	};
	return home[policy];
}

static const bool hak_policy_is_of_class[] = {
#define HAK_POLICY_OF_class true
#define HAK_POLICY_OF_all false
#define HAK_POLICY_IS_OF_CLASS(name, unit, of, windows, measure, sentence) HAK_POLICY_OF_##of,
	HAK_POLICIES(HAK_POLICY_IS_OF_CLASS)
};
HAK_INLINE uint32_t hak_policy_ends(int policy) { return hak_policy_is_of_class[policy] ? HAK_CLASSES : 1; }

#if HAK_DEBUG
/* For tests: publishes a target as ACE does.  It must be one that ACE could want. */
HAK_EXPORT void hak_debug_target(int policy, uint32_t c, uint64_t value) { hak_target_publish(policy, c, value); }
#endif

static HAK_COLD void hak_target_init(void)
{
	for (int policy = 0; policy < HAK_POLICY_COUNT; policy++)
		for (uint32_t c = 0; c < hak_policy_ends(policy); c++)
			hak_target_publish(policy, c, hak_target_home(policy, c));
}

/* =================================================== metadata ================================================== */

/* A mapping for metadata.  Hardened: with a guard before and behind, so that nothing runs into it from a neighbour. */
static HAK_COLD char *hak_meta_map(size_t len)
{
	char *p;
	if (!HAK_HARDENED)
		return hak_os_map(len, PROT_READ | PROT_WRITE);
	if (!(p = hak_os_map(len + 2 * HAK_GUARD, PROT_NONE)))
		return NULL;
	if (!hak_os_commit(p + HAK_GUARD, len)) {
		hak_os_unmap(p, len + 2 * HAK_GUARD);
		return NULL;
	}
	return p + HAK_GUARD;
}

/* Zeroed memory that is never given back; NULL when there is none. */
static HAK_COLD void *hak_meta_alloc(size_t n)
{
	void *p = NULL;
	n = hak_round_up(n, 64);
	hak_lock(&hak_meta.lock);
	if (n > (size_t)(hak_meta.end - hak_meta.at)) {
		size_t least = hak_round_up(n, hak_boot.os_page), chunk = n > (256 << 10) /* a heap struct */ ? least : (size_t)1 << 20;
		char *fresh = hak_meta_map(chunk);
		if (!fresh && chunk > least)
			fresh = hak_meta_map(chunk = least);
		if (!fresh)
			goto out;
		hak_meta.bytes += chunk;
		if (chunk - n <= (size_t)(hak_meta.end - hak_meta.at)) { /* the longer rest is worth keeping */
			p = fresh;
			goto out;
		}
		hak_meta.at = fresh;
		hak_meta.end = fresh + chunk;
	}
	p = hak_meta.at;
	hak_meta.at += n;
out:
	hak_unlock(&hak_meta.lock);
	return p;
}

/* ===================================================== gauges ================================================== */

static void hak_gauge_raise(uint64_t *peak, uint64_t bytes)
{
	uint64_t seen = hak_load(peak);
	while (bytes > seen && !hak_cas(peak, &seen, bytes))
		;
}

static uint64_t hak_gauge_sum(void)
{
	uint64_t sum = 0;
	for (int t = 0; t < HAK_TIER_COUNT; t++)
		sum += hak_load(&hak_gauge.used[t]);
	return sum;
}

static HAK_NOINLINE void hak_gauge_add(int tier, int64_t bytes)
{
	uint64_t used = hak_add_shared(&hak_gauge.used[tier], (uint64_t)bytes) + (uint64_t)bytes;
	if (bytes <= 0)
		return;
	hak_gauge_raise(&hak_gauge.peak[tier], used);
	hak_gauge_raise(&hak_gauge.peak_all, hak_gauge_sum());
}

/* Two counts that only rise, of what came and of what went. */
static void hak_gauge_book(uint64_t *came, uint64_t *went, int64_t n)
{
	*(n > 0 ? came : went) += (uint64_t)(n > 0 ? n : -n);
}

/* The gauges learn of all that has changed in a heap, tier t.  Claim. */
static HAK_NOINLINE void hak_gauge_tell_locked(hak_heap_t *h, int t)
{
	uint64_t used = h->used_bytes[t], step = used / HAK_GAUGE_SHARE;
	int64_t news = (int64_t)(used - h->told_bytes[t]);

	step = step < HAK_GAUGE_LEAST ? HAK_GAUGE_LEAST : step > HAK_GAUGE_MOST ? HAK_GAUGE_MOST : step;
	h->told_bytes[t] = used;
	h->told_low[t] = used - step; /* below 0 it wraps, and so does what is compared with it */
	h->told_span[t] = 2 * step;
	if (news)
		hak_gauge_add(t, news);
}

/* Whether that is worth an atomic operation by now.  Claim. */
HAK_INLINE void hak_gauge_watch_locked(hak_heap_t *h, int t)
{
	if (hak_unlikely(h->used_bytes[t] - h->told_low[t] > h->told_span[t]))
		hak_gauge_tell_locked(h, t);
}

/* ===================================================== rings =================================================== */

static HAK_COLD hak_ring_t *hak_ring_make(void) /* NULL: out of memory */
{
	hak_ring_t *r = hak_meta_alloc(sizeof *r);
	if (r)
		hak_store(&r->every, (uint32_t)HAK_RING_EVERY);
	return r;
}

/* Whether so many refills are worth an event. */
HAK_INLINE bool hak_ring_is_due(const hak_ring_t *r, uint32_t refills) { return refills >= hak_load(&r->every); }

/* A full ring drops the event, and counts it.  Claim. */
static HAK_COLD void hak_ring_put_locked(hak_ring_t *r, const hak_event_t *e)
{
	uint32_t head = r->head;
	if (head - hak_load_acquire(&r->tail) == HAK_RING) {
		hak_count(&r->dropped, 1u);
		return;
	}
	r->event[head % HAK_RING] = *e;
	hak_store_release(&r->head, head + 1);
}

/* The oldest event.  False: there is none.  Learning thread only. */
static HAK_COLD bool hak_ring_get(hak_ring_t *r, hak_event_t *e)
{
	uint32_t tail = r->tail;
	if (hak_load_acquire(&r->head) == tail)
		return false;
	*e = r->event[tail % HAK_RING];
	hak_store_release(&r->tail, tail + 1);
	return true;
}

static HAK_COLD uint32_t hak_ring_dropped(const hak_ring_t *r) { return hak_load(&r->dropped); }

/* A window has brought so many events, or filled the ring: those of the next shall fill it by half at most.  Learning
 * thread only. */
static HAK_COLD void hak_ring_pace(hak_ring_t *r, uint32_t events, bool full)
{
	uint32_t every = hak_load(&r->every);
	if (events > HAK_RING / 2 && every < HAK_RING_RARELY)
		hak_store(&r->every, every * (full ? 4 : 2));
	else if (events < HAK_RING / 16 && every > 1)
		hak_store(&r->every, every / 2);
}

/* =================================================== page heap ================================================= */

HAK_INLINE hak_super_t *hak_super_of(uint32_t u) { return hak_super[u / HAK_SUPER_UNITS]; }
HAK_INLINE hak_slab_t *hak_slab_of(uint32_t u) { return &hak_super_of(u)->unit[u % HAK_SUPER_UNITS]; }

/* Pointer -> unit.  HAK_UNITS_MAX for a pointer outside every range.  The first range is found by arithmetic, those
 * that were reserved after it was full by looking through the few there are. */
static inline uint32_t hak_unit_of(const void *p)
{
	size_t u = ((uintptr_t)p - hak_fast.base) >> HAK_UNIT_SHIFT;
	if (hak_likely(u < hak_fast.units))
		return (uint32_t)u;
	for (uint32_t i = 1, n = hak_load_acquire(&hak_page.ranges); i < n; i++) {
		const hak_range_t *r = &hak_page.range[i];
		u = ((uintptr_t)p - (uintptr_t)r->base) >> HAK_UNIT_SHIFT;
		if (u < r->units)
			return r->first + (uint32_t)u;
	}
	return HAK_UNITS_MAX;
}

HAK_INLINE uint32_t hak_word(uint32_t u) /* 0 for HAK_UNITS_MAX */
{
	return u < HAK_UNITS_MAX ? hak_load(&hak_unit[u]) : 0;
}

static void hak_words_set(uint32_t u, uint32_t n, uint32_t word)
{
	for (uint32_t i = 0; i < n; i++)
		hak_store(&hak_unit[u + i], word);
}

static void hak_list_remove(hak_list_t *l, hak_slab_t *s)
{
	*(s->prev ? &s->prev->next : &l->head) = s->next;
	*(s->next ? &s->next->prev : &l->tail) = s->prev;
}

static void hak_list_push(hak_list_t *l, hak_slab_t *s) /* at the head */
{
	s->prev = NULL;
	s->next = l->head;
	*(l->head ? &l->head->prev : &l->tail) = s;
	l->head = s;
}

static void hak_list_append(hak_list_t *l, hak_slab_t *s) /* at the tail */
{
	s->next = NULL;
	s->prev = l->tail;
	*(l->tail ? &l->tail->next : &l->head) = s;
	l->tail = s;
}

/* Dirty units among u .. u + n; optionally sets or clears all of them. */
static uint32_t hak_dirty_count(uint32_t u, uint32_t n)
{
	uint32_t sum = 0;
	while (n) {
		uint32_t at = u % HAK_SUPER_UNITS, k = hak_min32(n, HAK_SUPER_UNITS - at);
		uint64_t mask = (k == 64 ? ~0ull : (1ull << k) - 1) << at;
		sum += (uint32_t)__builtin_popcountll(hak_super_of(u)->dirty & mask);
		u += k;
		n -= k;
	}
	return sum;
}

static uint32_t hak_dirty_skip(uint32_t u, uint32_t n) /* clean units before the first dirty one */
{
	uint32_t i = 0;
	while (i < n && !((hak_super_of(u + i)->dirty >> ((u + i) % HAK_SUPER_UNITS)) & 1))
		i++;
	return i;
}

static void hak_dirty_set(uint32_t u, uint32_t n, bool dirty)
{
	while (n) {
		uint32_t at = u % HAK_SUPER_UNITS, k = hak_min32(n, HAK_SUPER_UNITS - at);
		uint64_t mask = (k == 64 ? ~0ull : (1ull << k) - 1) << at;
		if (dirty)
			hak_super_of(u)->dirty |= mask;
		else
			hak_super_of(u)->dirty &= ~mask;
		u += k;
		n -= k;
	}
}

HAK_INLINE uint32_t hak_run_bin(uint32_t len) /* every run in a bin above this one is longer than len */
{
	if (len < 64)
		return len;
	uint32_t log = 31u - (uint32_t)__builtin_clz(len);
	return hak_min32(64 + (log - 6) * 4 + ((len >> (log - 2)) & 3), HAK_RUN_BINS - 1);
}

/* The order of age: r goes behind `older`, which is NULL for the oldest place. */
static void hak_age_insert(hak_slab_t *r, hak_slab_t *older)
{
	r->older = older;
	r->newer = older ? older->newer : hak_page.oldest;
	*(r->newer ? &r->newer->older : &hak_page.newest) = r;
	*(older ? &older->newer : &hak_page.oldest) = r;
}

static void hak_age_remove(hak_slab_t *r)
{
	*(r->older ? &r->older->newer : &hak_page.oldest) = r->newer;
	*(r->newer ? &r->newer->older : &hak_page.newest) = r->older;
}

/* Puts a free run of known length and dirt into its bin, and into the order of age behind `older`. */
static void hak_run_insert_locked(uint32_t u, uint32_t len, uint32_t dirty, uint64_t stamp, hak_slab_t *older)
{
	hak_slab_t *r = hak_slab_of(u), *last = hak_slab_of(u + len - 1);
	int kind = dirty ? HAK_DIRTY : HAK_CLEAN;
	uint32_t bin = hak_run_bin(len);

	last->len = len;
	r->len = len;
	r->dirty = dirty;
	r->where = HAK_IN_FREE;
	hak_list_push(&hak_page.bin[kind][bin], r);
	hak_page.nonempty[kind][bin / 64] |= 1ull << (bin % 64);
	if (dirty) {
		r->stamp = stamp;
		hak_age_insert(r, older);
	}
	hak_count(&hak_page.dirty_units, dirty);
	hak_page.clean_units += len - dirty;
	hak_page.runs++;
}

static void hak_run_remove_locked(hak_slab_t *r)
{
	int kind = r->dirty ? HAK_DIRTY : HAK_CLEAN;
	uint32_t bin = hak_run_bin(r->len);

	hak_list_remove(&hak_page.bin[kind][bin], r);
	if (!hak_page.bin[kind][bin].head)
		hak_page.nonempty[kind][bin / 64] &= ~(1ull << (bin % 64));
	if (r->dirty)
		hak_age_remove(r);
	r->where = HAK_IN_NONE;
	hak_count(&hak_page.dirty_units, -(uint64_t)r->dirty);
	hak_page.clean_units -= r->len - r->dirty;
	hak_page.runs--;
}

/* Units u .. u + len become free and join their free neighbours.  The age of the whole is that of its larger dirty
 * part, so that a busy neighbour does not keep old memory young. */
static void hak_run_free_locked(uint32_t u, uint32_t len, uint64_t now)
{
	uint32_t dirty = hak_dirty_count(u, len), most = dirty, start = u, end = u + len;
	uint64_t stamp = now;
	hak_slab_t *older = hak_page.newest;

	hak_words_set(u, len, 0);
	for (int side = 0; side < 2; side++) {
		uint32_t next = side ? end : start - 1;
		hak_slab_t *r;
		if (!hak_super_of(next) || hak_load(&hak_unit[next]) != 0)
			continue;
		r = hak_slab_of(next);
		if (!side)
			r = hak_slab_of(start -= r->len);
		end += side ? r->len : 0;
		if (r->dirty > most) {
			most = r->dirty;
			stamp = r->stamp;
			older = r->older;
		} else if (older == r && r->dirty) {
			older = r->older;
		}
		dirty += r->dirty;
		hak_run_remove_locked(r);
	}
	hak_run_insert_locked(start, end - start, dirty, stamp, older);
}

/* Reserves another range of at least `units`, halving what it asks for until the system agrees. */
static HAK_COLD bool hak_range_reserve_locked(uint32_t units)
{
	uint32_t i = hak_page.ranges, first = HAK_SUPER_UNITS;
	size_t least = hak_round_up((size_t)units << HAK_UNIT_SHIFT, HAK_SUPER), want = (size_t)hak_option.reserve, limit, mapped;
	hak_range_t *r = &hak_page.range[i];
	char *p = NULL, *whole;

	if (i) /* a superslab that is never committed stands between two ranges, so that runs do not join across */
		first = hak_page.range[i - 1].first + hak_page.range[i - 1].units + HAK_SUPER_UNITS;
	if (i == HAK_RANGES_MAX || first + units > HAK_UNITS_MAX - HAK_SUPER_UNITS) /* one beyond the last, too */
		return false;
	if (want == 0) {
		want = (size_t)64 << 30;
		if (want < 2 * hak_os_memory())
			want = 2 * hak_os_memory();
		limit = hak_os_address_limit() / 4; /* a limited program has other mappings to make */
		if (want > limit)
			want = limit;
	}
	limit = (size_t)(HAK_UNITS_MAX - HAK_SUPER_UNITS - first) << HAK_UNIT_SHIFT;
	want = (want < limit ? want : limit) & ~(HAK_SUPER - 1);
	if (want < least)
		want = least;
	while (!(p = hak_os_map_aligned(want, HAK_SUPER, PROT_NONE, &whole, &mapped)) && want > least) {
		want = (want / 2) & ~(HAK_SUPER - 1);
		if (want < least)
			want = least;
	}
	if (!p)
		return false;
	hak_os_advise(p, want, hak_option.huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	*r = (hak_range_t){.base = p, .first = first, .units = (uint32_t)(want >> HAK_UNIT_SHIFT), .mapped = mapped};
	if (i == 0) {
		hak_fast.base = (uintptr_t)p - ((size_t)first << HAK_UNIT_SHIFT);
		hak_fast.units = first + r->units;
	}
	hak_store_release(&hak_page.ranges, i + 1);
	return true;
}

/* Whether free units are out of bounds until they are handed out: use after free of a whole run or slab ends at once. */
HAK_INLINE bool hak_page_is_forbidden(void) { return HAK_HARDENED && hak_option.hardened >= 2; }

/* The system has so many mappings for a process, and each stretch that is out of bounds takes two: with more free runs
 * than this no more are made. */
static bool hak_page_is_split_locked(void) { return hak_page.runs > HAK_FORBIDDEN_RUNS; }

/* Units of the free run r, `skip` from its start, may be touched from now on. */
static bool hak_run_permit_locked(const hak_slab_t *r, uint32_t skip, uint32_t units)
{
	if (hak_page_is_split_locked()) { /* all of r may: it joins its neighbours, which are in use */
		skip = 0;
		units = r->len;
	}
	return !hak_page_is_forbidden()
	    || hak_os_commit(r->base + ((size_t)skip << HAK_UNIT_SHIFT), (size_t)units << HAK_UNIT_SHIFT);
}

/* Units to commit at the end of a range, so that a free run of `units` exists; 0: it has no room for them. */
static uint32_t hak_range_need_locked(const hak_range_t *r, uint32_t units)
{
	uint32_t u = r->first + r->top, tail = 0, n;
	if (r->top && hak_load(&hak_unit[u - 1]) == 0)
		tail = hak_slab_of(u - 1)->len;
	n = (uint32_t)hak_round_up(units > tail ? units - tail : 1, HAK_SUPER_UNITS);
	return n <= r->units - r->top ? n : 0;
}

/* Commits superslabs at the end of a range, so that a free run of `units` exists.  An old range may have room: what the
 * last one was reserved for was larger, or the system refused it. */
static HAK_COLD bool hak_page_grow_locked(uint32_t units, uint64_t now)
{
	hak_range_t *r = NULL;
	uint32_t u, n = 0;

	for (uint32_t i = 0; i < hak_page.ranges && !n; i++)
		n = hak_range_need_locked(r = &hak_page.range[i], units);
	if (!n) {
		n = (uint32_t)hak_round_up(units, HAK_SUPER_UNITS);
		if (!hak_range_reserve_locked(n))
			return false;
		r = &hak_page.range[hak_page.ranges - 1];
	}
	u = r->first + r->top;
	char *base = r->base + ((size_t)r->top << HAK_UNIT_SHIFT);
	for (uint32_t i = u; i < u + n; i += HAK_SUPER_UNITS) {
		hak_super_t *s = hak_super[i / HAK_SUPER_UNITS]; /* there already if committing failed before */
		if (!s && !(s = hak_meta_alloc(sizeof *s)))
			return false;
		for (uint32_t k = 0; k < HAK_SUPER_UNITS; k++) {
			s->unit[k].unit = i + k;
			s->unit[k].base = base + ((size_t)(i + k - u) << HAK_UNIT_SHIFT);
		}
		hak_store(&hak_unit[i], HAK_RUN_PURGING); /* not free for a neighbour until all of it is committed */
		hak_store_release(&hak_super[i / HAK_SUPER_UNITS], s);
	}
	if (!hak_page_is_forbidden() && !hak_os_commit(base, (size_t)n << HAK_UNIT_SHIFT))
		return false;
	r->top += n;
	hak_page.supers += n / HAK_SUPER_UNITS;
	hak_run_free_locked(u, n, now);
	return true;
}

/* The shortest free run of at least `units` in the bins of one kind; NULL. */
static hak_slab_t *hak_run_find_locked(int kind, uint32_t units)
{
	uint32_t bin = hak_run_bin(units);
	hak_slab_t *best = NULL;

	if (bin >= 64) { /* lengths are mixed here: the best of the first few */
		int looked = 0;
		for (hak_slab_t *r = hak_page.bin[kind][bin].head; r && looked < 16; r = r->next, looked++)
			if (r->len >= units && (!best || r->len < best->len))
				best = r;
		if (best)
			return best;
		bin++;
	}
	for (uint32_t w = bin / 64; w < HAK_RUN_WORDS; w++) {
		uint64_t bits = hak_page.nonempty[kind][w];
		if (w == bin / 64)
			bits &= ~0ull << (bin % 64);
		if (bits)
			return hak_page.bin[kind][w * 64 + (uint32_t)__builtin_ctzll(bits)].head;
	}
	return NULL;
}

static void hak_page_peak_locked(void)
{
	uint64_t bytes = (hak_page.used_units << HAK_UNIT_SHIFT) + hak_load(&hak_whales.bytes);
	if (bytes > hak_page.peak_bytes)
		hak_page.peak_bytes = bytes;
	if (bytes > hak_page.peak_shown)
		hak_page.peak_shown = bytes;
}

/* Free dirty units that may be kept: as many as are in use, or as the option says and what experience adds to it. */
static uint64_t hak_page_allowance_locked(void)
{
	uint64_t keep = (hak_target_retain() >> HAK_UNIT_SHIFT) + hak_page.regret_units;
	return keep > hak_page.used_units ? keep : hak_page.used_units;
}

/* Clean units are handed out: if as many were purged a moment ago, a program's use goes up and down, and more is worth
 * keeping on its way down, to its peak at most.  One that only frees never gets here. */
static void hak_page_regret_locked(uint64_t clean, uint64_t now)
{
	uint64_t most = hak_page.peak_bytes >> HAK_UNIT_SHIFT;
	if (now - hak_page.recent_stamp > HAK_REGRET_MS)
		hak_page.recent_units = 0;
	if (clean > hak_page.recent_units)
		clean = hak_page.recent_units;
	hak_page.recent_units -= clean;
	hak_page.regret_units += clean;
	if (hak_page.regret_units > most)
		hak_page.regret_units = most;
}

/* Takes a run of `units` at a multiple of `align` units, its words still 0; 0: out of memory.  *zero: never used. */
static uint32_t hak_run_alloc_locked(uint32_t units, uint32_t align, bool *zero, uint64_t now)
{
	uint32_t need = units + align - 1, skip = 0, u, len, dirty;
	uint64_t stamp;
	hak_slab_t *r, *older;

	while (!(r = hak_run_find_locked(HAK_DIRTY, need)) && !(r = hak_run_find_locked(HAK_CLEAN, need)))
		if (!hak_page_grow_locked(need, now))
			return 0;
	if (align > 1) { /* by address: the base of a range need not be a multiple of more than a superslab */
		uintptr_t address = (uintptr_t)r->base, at = hak_round_up(address, (size_t)align << HAK_UNIT_SHIFT);
		skip = (uint32_t)((at - address) >> HAK_UNIT_SHIFT);
	}
	if (!hak_run_permit_locked(r, skip, units))
		return 0;
	hak_run_remove_locked(r);
	u = r->unit;
	len = r->len;
	stamp = r->stamp;
	older = r->dirty ? r->older : hak_page.newest;
	if (skip) {
		dirty = hak_dirty_count(u, skip);
		hak_run_insert_locked(u, skip, dirty, stamp, older);
		if (dirty)
			older = hak_slab_of(u);
		u += skip;
		len -= skip;
	}
	dirty = hak_dirty_count(u, units);
	hak_page.fresh_units += units - dirty;
	*zero = dirty == 0;
	if (dirty < units && hak_page.recent_units)
		hak_page_regret_locked(units - dirty, now);
	if (len > units) {
		dirty = hak_dirty_count(u + units, len - units);
		hak_run_insert_locked(u + units, len - units, dirty, stamp, older);
	}
	hak_dirty_set(u, units, true); /* what is handed out counts as touched */
	hak_page.used_units += units;
	hak_page.taken_units += units;
	hak_page_peak_locked();
	return u;
}

/* A used run goes back.  Returns whether more than the allowance is kept now. */
static bool hak_run_release_locked(uint32_t u, uint32_t units, uint64_t now)
{
	if (hak_page_is_forbidden() && !hak_page_is_split_locked())
		hak_os_forbid(hak_slab_of(u)->base, (size_t)units << HAK_UNIT_SHIFT);
	hak_page.used_units -= units;
	hak_run_free_locked(u, units, now);
	return hak_page.dirty_units > hak_page_allowance_locked();
}

/* Gives memory back, oldest first: everything that was freed before `before` (ms), and more while more than the
 * allowance is kept.  The calls to the system are made without the page heap's lock, on runs that are marked as
 * neither free nor used.  Waits for another purge only if asked to. */
static HAK_COLD size_t hak_page_purge(uint64_t before, bool wait)
{
	uint64_t keep, now = hak_os_now();
	size_t returned = 0;

	if (wait)
		hak_lock(&hak_page.purging);
	else if (!hak_lock_try(&hak_page.purging))
		return 0;
	hak_lock(&hak_page.lock);
	if (now - hak_page.regret_stamp >= 1000) { /* what was learned is forgotten by half in a second */
		hak_page.regret_units /= 2;
		hak_page.regret_stamp = now;
	}
	keep = hak_page_allowance_locked();
	/* When more is kept than that, a sixteenth goes at a time, not one unit for each unit that comes. */
	keep = hak_page.dirty_units > keep ? keep - keep / 16 : UINT64_MAX;
	for (hak_slab_t *r; (r = hak_page.oldest) && (r->stamp < before || hak_page.dirty_units > keep);) {
		uint32_t u = r->unit, len = r->len, dirty, piece = HAK_PURGE_SUPERS * HAK_SUPER_UNITS;
		uint64_t stamp = r->stamp;
		hak_slab_t *older = r->older;
		if (stamp >= before && hak_page.dirty_units - keep < piece) /* no more of a young run than need be */
			piece = hak_max32((uint32_t)(hak_page.dirty_units - keep), HAK_SUPER_UNITS);
		hak_run_remove_locked(r);
		uint32_t clean = hak_dirty_skip(u, len); /* what is before and behind the piece joins it again below */
		if (clean)
			hak_run_insert_locked(u, clean, 0, 0, NULL);
		u += clean;
		len -= clean;
		if (len > piece) {
			hak_run_insert_locked(u + piece, len - piece, hak_dirty_count(u + piece, len - piece), stamp, older);
			len = piece;
		}
		dirty = hak_dirty_count(u, len);
		hak_store(&hak_unit[u], HAK_RUN_PURGING);
		hak_store(&hak_unit[u + len - 1], HAK_RUN_PURGING);
		hak_page.purging_dirty = dirty;
		hak_page.purging_clean = len - dirty;
		uint64_t bits[HAK_PURGE_SUPERS + 1]; /* the words are shared with units that are not ours */
		uint32_t first = u & ~(HAK_SUPER_UNITS - 1u);
		for (uint32_t i = first; i < u + len; i += HAK_SUPER_UNITS)
			bits[(i - first) / HAK_SUPER_UNITS] = hak_super_of(i)->dirty;
		hak_unlock(&hak_page.lock);

		bool done = true;
		for (uint32_t i = u, n; i < u + len; i += n) {
			bool is = (bits[(i - first) / 64] >> (i % 64)) & 1;
			for (n = 1; i + n < u + len && (((bits[(i + n - first) / 64] >> ((i + n) % 64)) & 1) == is); n++)
				;
			if (is)
				done &= hak_os_purge(hak_slab_of(i)->base, (size_t)n << HAK_UNIT_SHIFT);
		}

		hak_lock(&hak_page.lock);
		hak_page.purging_dirty = hak_page.purging_clean = 0;
		if (done) {
			hak_dirty_set(u, len, false);
			hak_page.purges++;
			hak_page.purged_units += dirty;
			hak_page.aged_units += stamp < before ? dirty : 0;
			hak_page.recent_units = (now - hak_page.recent_stamp > HAK_REGRET_MS ? 0 : hak_page.recent_units) + dirty;
			hak_page.recent_stamp = now;
			returned += (size_t)dirty << HAK_UNIT_SHIFT;
		}
		hak_run_free_locked(u, len, now);
		if (!done)
			break; /* locked memory: it stays */
	}
	hak_unlock(&hak_page.lock);
	hak_unlock(&hak_page.purging);
	return returned;
}

static uint64_t hak_page_purged(void) /* bytes given back, ever */
{
	hak_lock(&hak_page.lock);
	uint64_t units = hak_page.purged_units;
	hak_unlock(&hak_page.lock);
	return units << HAK_UNIT_SHIFT;
}

static void hak_page_release(uint32_t u, uint32_t units)
{
	bool over;
	hak_lock(&hak_page.lock);
	over = hak_run_release_locked(u, units, hak_os_now());
	hak_unlock(&hak_page.lock);
	if (hak_unlikely(over))
		hak_page_purge(0, false);
}

/* =================================================== whales ==================================================== */

static hak_whale_t **hak_whale_place_locked(const void *p) /* the link that points to p's entry, or to NULL */
{
	hak_whale_t **at = &hak_whales.bucket[((uintptr_t)p * 0x9E3779B97F4A7C15ull) >> 52];
	while (*at && (*at)->base != p)
		at = &(*at)->next;
	return at;
}

static void hak_whale_enter_locked(hak_whale_t *w)
{
	hak_whale_t **at = hak_whale_place_locked(w->base);
	w->next = *at;
	*at = w;
	hak_whales.live++;
	hak_store(&hak_whales.bytes, hak_whales.bytes + w->len);
}

static hak_whale_t *hak_whale_leave_locked(const void *p) /* NULL: not a whale */
{
	hak_whale_t **at = hak_whale_place_locked(p), *w = *at;
	if (w) {
		*at = w->next;
		hak_whales.live--;
		hak_store(&hak_whales.bytes, hak_whales.bytes - w->len);
	}
	return w;
}

static void hak_whale_unlist_kept_locked(hak_whale_t **at)
{
	hak_whale_t *w = *at;
	*at = w->next;
	hak_whales.kept_count--;
	hak_store(&hak_whales.kept_bytes, hak_whales.kept_bytes - w->len);
}

static void hak_whale_forget_locked(hak_whale_t *w) /* the entry, for another whale */
{
	w->next = hak_whales.unused;
	hak_whales.unused = w;
}

/* Bytes of whales that callers got or gave back, by growing and shrinking, too. */
static void hak_whale_count_locked(int64_t bytes)
{
	hak_gauge_book(&hak_whales.alloc_bytes, &hak_whales.freed_bytes, bytes);
	hak_gauge_add(HAK_TIER_whale, bytes);
}

static void hak_whale_keep_locked(hak_whale_t *w) /* as the newest */
{
	w->stamp = hak_os_now();
	w->next = hak_whales.kept;
	hak_whales.kept = w;
	hak_whales.kept_count++;
	hak_store(&hak_whales.kept_bytes, hak_whales.kept_bytes + w->len);
}

/* Unmaps kept whales: those freed before `before`, and the oldest while there are more than may be kept.  What the
 * system does not unmap stays kept, without its memory, and its turn comes after the others'. */
static HAK_COLD size_t hak_whale_purge(uint64_t before)
{
	size_t sum = 0;
	hak_lock(&hak_whales.lock);
	for (int refusals = 0; refusals < HAK_REFUSALS;) {
		hak_whale_t **at = &hak_whales.kept, *w;
		uint64_t keep = hak_target_bigcache();
		if (keep < hak_whales.bytes)
			keep = hak_whales.bytes;
		while (*at && (*at)->next) /* the last is the oldest */
			at = &(*at)->next;
		w = *at;
		if (!w || (w->stamp >= before && hak_whales.kept_bytes <= keep && hak_whales.kept_count <= HAK_KEPT_WHALES))
			break;
		hak_whale_unlist_kept_locked(at);
		hak_unlock(&hak_whales.lock);
		bool done = hak_os_unmap(w->base, w->len);
		if (!done)
			hak_os_purge(w->base, w->len);
		hak_lock(&hak_whales.lock);
		if (done) {
			sum += w->len;
			*(w->stamp < before ? &hak_whales.aged_bytes : &hak_whales.over_bytes) += w->len;
			hak_whale_forget_locked(w);
		} else {
			hak_whale_keep_locked(w);
			refusals++;
		}
	}
	hak_unlock(&hak_whales.lock);
	return sum;
}

static hak_whale_t *hak_whale_entry_locked(void)
{
	hak_whale_t *w = hak_whales.unused;
	if (w)
		hak_whales.unused = w->next;
	else
		w = hak_meta_alloc(sizeof *w);
	return w;
}

/* A mapping of its own for a block.  *zero: it is fresh.  NULL: out of memory. */
static HAK_COLD void *hak_whale_alloc(size_t n, size_t align, bool *zero)
{
	size_t len = hak_round_up(n, hak_boot.os_page);
	hak_whale_t **best = NULL, *w = NULL;
	char *base;

	*zero = false;
	hak_lock(&hak_whales.lock);
	for (hak_whale_t **at = &hak_whales.kept; *at; at = &(*at)->next)
		if ((*at)->len >= len && (*at)->len - len <= len / 4 && ((uintptr_t)(*at)->base & (align - 1)) == 0
		    && (!best || (*at)->len < (*best)->len))
			best = at;
	if (best) {
		w = *best;
		hak_whale_unlist_kept_locked(best);
		hak_whales.hits++;
	} else {
		w = hak_whale_entry_locked();
	}
	hak_unlock(&hak_whales.lock);
	if (!w)
		return NULL;
	if (!best) {
		base = hak_os_map_aligned(len, align, PROT_READ | PROT_WRITE, &w->base, &w->len);
		if (!base && hak_whale_purge(UINT64_MAX) + hak_page_purge(UINT64_MAX, false))
			base = hak_os_map_aligned(len, align, PROT_READ | PROT_WRITE, &w->base, &w->len);
		hak_lock(&hak_whales.lock);
		if (!base || w->len != len) { /* with ends that cannot be had off: it is nobody's block, but it is mapped */
			if (base)
				hak_whale_keep_locked(w);
			else
				hak_whale_forget_locked(w);
			hak_unlock(&hak_whales.lock);
			if (base)
				hak_whale_purge(0);
			return NULL;
		}
		*zero = true;
		hak_whales.fresh_bytes += w->len;
	} else {
		hak_lock(&hak_whales.lock);
	}
	hak_whales.allocs++;
	hak_whale_count_locked((int64_t)w->len);
	hak_whale_enter_locked(w);
	base = w->base;
	hak_unlock(&hak_whales.lock);
	hak_lock(&hak_page.lock);
	hak_page_peak_locked();
	hak_unlock(&hak_page.lock);
	return base;
}

static HAK_COLD bool hak_whale_free(void *p) /* false: not a whale */
{
	hak_lock(&hak_whales.lock);
	hak_whale_t *w = hak_whale_leave_locked(p);
	if (!w) {
		hak_unlock(&hak_whales.lock);
		return false;
	}
	hak_whales.frees++;
	hak_whale_count_locked(-(int64_t)w->len);
	hak_whale_keep_locked(w);
	hak_unlock(&hak_whales.lock);
	hak_whale_purge(hak_page_is_forbidden() ? UINT64_MAX : 0);
	return true;
}

static size_t hak_whale_size(const void *p, size_t *asked) /* 0: not a whale */
{
	hak_lock(&hak_whales.lock);
	hak_whale_t *w = *hak_whale_place_locked(p);
	size_t len = w ? w->len : 0;
	*asked = w ? w->asked : 0;
	hak_unlock(&hak_whales.lock);
	return len;
}

/* The caller of the whale p asks for n bytes.  Returns how long it is. */
static size_t hak_whale_ask(const void *p, size_t n)
{
	hak_lock(&hak_whales.lock);
	hak_whale_t *w = *hak_whale_place_locked(p);
	size_t len = w ? w->len : 0;
	if (w)
		w->asked = n;
	hak_unlock(&hak_whales.lock);
	return len;
}

/* The whale around p, which need not be its start, for messages and questions.  0: there is none. */
static HAK_COLD size_t hak_whale_around(const void *p, char **base)
{
	size_t len = 0;
	hak_lock(&hak_whales.lock);
	for (uint32_t i = 0; i < HAK_WHALE_BUCKETS && !len; i++)
		for (hak_whale_t *w = hak_whales.bucket[i]; w && !len; w = w->next)
			if ((uintptr_t)p - (uintptr_t)w->base < w->len) {
				*base = w->base;
				len = w->len;
			}
	hak_unlock(&hak_whales.lock);
	return len;
}

/* Grows or shrinks a mapping, which may move it.  NULL: the system will not, and the block is as it was.  That need not
 * mean that memory is out: mremap takes no block of which the program has advised or protected a part. */
static HAK_COLD void *hak_whale_resize(void *p, size_t n)
{
	size_t len = hak_round_up(n, hak_boot.os_page);
	hak_lock(&hak_whales.lock);
	hak_whale_t *w = hak_whale_leave_locked(p);
	if (w) {
		/* With room to grow, so that a block that grows by steps does not go to the system at each: address space
		 * only, nobody has touched it. */
		if (len > w->len)
			len = hak_round_up(len + len / 8, hak_boot.os_page);
		char *q = hak_os_remap(w->base, w->len, len);
		if (!q && len > w->len)
			q = hak_os_remap(w->base, w->len, len = hak_round_up(n, hak_boot.os_page));
		if (q) {
			hak_whale_count_locked((int64_t)(len - w->len));
			w->base = q;
			w->len = len;
		}
		hak_whale_enter_locked(w);
		p = q;
	}
	hak_unlock(&hak_whales.lock);
	return p;
}

/* ===================================================== slabs =================================================== */

HAK_INLINE uint32_t hak_slab_units(const hak_class_t *k) /* units that a new slab takes */
{
	return hak_option.tiny_use_superslab ? k->units : hak_max32(k->units, HAK_SUPER_UNITS);
}

HAK_INLINE hak_slab_t *hak_slab_head(uint32_t u)
{
	return hak_slab_of(u - hak_slab_of(u)->back);
}

/* Index of the block that starts at p, or an error.  Claim of the owner, or lock for an orphan. */
HAK_INLINE int hak_slab_index(const hak_slab_t *s, const hak_class_t *k, const void *p, uint32_t *index)
{
	uint64_t offset = (uint64_t)((const char *)p - s->base);
	uint32_t i = (uint32_t)((offset * k->reciprocal) >> 40);
	*index = i;
	if (hak_unlikely((uint64_t)i * k->size != offset || i >= s->carved))
		return (uint64_t)i * k->size != offset ? HAK_ERR_INTERIOR : HAK_ERR_ALREADY_FREE;
	if (hak_unlikely((s->map[i / 64] >> (i % 64)) & 1))
		return HAK_ERR_ALREADY_FREE;
	return HAK_ERR_OK;
}

static void hak_slab_init(uint32_t u, uint32_t units, uint32_t c)
{
	const hak_class_t *k = &hak_class[c];
	hak_slab_t *s = hak_slab_of(u);

	for (uint32_t i = 0; i < units; i++)
		hak_slab_of(u + i)->back = (uint8_t)i;
	s->map = k->blocks <= HAK_INLINE_BITS ? s->bits : hak_super_of(u)->map[u % HAK_SUPER_UNITS];
	memset(s->map, 0, (k->blocks + 63) / 64 * 8);
	for (uint32_t i = 0; HAK_HARDENED && i < s->carved; i++) /* of the slab that was here before */
		hak_store(&hak_super_of(u)->note[u % HAK_SUPER_UNITS][i], HAK_NOTE_NEW);
	s->used = s->carved = s->free = 0;
	s->hint = s->purged = 0;
	s->len = units;
	s->class = (uint8_t)c;
	s->where = HAK_IN_NONE;
}

/* Moves up to n free blocks out of s, whole words of its bitmap first, then blocks that were never used. */
static uint32_t hak_slab_take(hak_slab_t *s, const hak_class_t *k, void **out, uint32_t n, uint32_t *carved)
{
	uint32_t got = 0, words = (k->blocks + 63) / 64, w = s->hint;

	*carved = 0;
	if (s->free) {
		for (; w < words && got < n; w++) {
			uint64_t bits = s->map[w];
			char *base = s->base + (size_t)w * 64 * k->size;
			while (bits && got < n) {
				out[got++] = base + (size_t)__builtin_ctzll(bits) * k->size;
				bits &= bits - 1;
			}
			s->map[w] = bits;
			if (bits)
				break;
		}
		s->hint = (uint16_t)w;
		s->free -= got;
	}
	if (got < n && s->carved < k->blocks) {
		uint32_t fresh = hak_min32(n - got, k->blocks - s->carved);
		char *p = s->base + (size_t)s->carved * k->size;
		for (uint32_t i = 0; i < fresh; i++, p += k->size)
			out[got++] = p;
		s->carved += fresh;
		*carved = fresh;
	}
	s->used += got;
	return got;
}

HAK_INLINE void hak_slab_put(hak_slab_t *s, uint32_t index)
{
	s->map[index / 64] |= 1ull << (index % 64);
	s->free++;
	s->used--;
	s->purged = 0;
	if (index / 64 < s->hint)
		s->hint = (uint16_t)(index / 64);
}

HAK_INLINE bool hak_slab_has_room(const hak_slab_t *s, const hak_class_t *k)
{
	return s->free != 0 || s->carved < k->blocks;
}

/* Gives the OS pages back that hold no used block.  Returns their bytes. */
static HAK_COLD size_t hak_slab_purge(hak_slab_t *s)
{
	const hak_class_t *k = &hak_class[s->class];
	size_t page = hak_boot.os_page, sum = 0;
	bool refused = false;

	if (s->purged || s->free == 0 || hak_page_is_forbidden()) /* the last: what fills its free blocks will be checked */
		return 0;
	for (uint32_t i = 0, j; i < s->carved; i = j + 1) {
		/* Free blocks are i .. j - 1, and j is a used one or the end. */
		for (j = i; j < s->carved && ((s->map[j / 64] >> (j % 64)) & 1); j++)
			if (j % 64 == 0 && s->map[j / 64] == ~0ull)
				j += 63;
		j = hak_min32(j, s->carved);
		size_t from = hak_round_up((size_t)i * k->size, page), to = (size_t)j * k->size & ~(page - 1);
		if (j <= i || from >= to)
			continue;
		if (hak_os_purge(s->base + from, to - from))
			sum += to - from;
		else
			refused = true;
	}
	s->purged = !refused;
	return sum;
}

/* =================================================== hardening ================================================= */

/* What the hardened library does beside allocating.  Each block has a note (hak_note_t), and what its caller asked for
 * ends before its room does, in a seal of up to 8 bytes that depends on its address and on a secret, none of them 0:
 *
 *    block              asked               room
 *      | the caller's bytes | seal | the rest |          level 2: the rest, and all of a free block, is HAK_FILL
 *
 * malloc: the note must not say LIVE; level 2: a freed block must be as free left it.  free: the note must say LIVE,
 * and the seal must be whole.  The owner of a block writes its note without a locked instruction: if another thread
 * frees it in the same moment both may pass, and malloc will find it in use.  The order of reuse is random.  In the
 * other variants all of it is dead code. */
enum { HAK_FILL = 0xDF, HAK_SEAL = 8 };

HAK_INLINE bool hak_guard_fills(void) { return hak_page_is_forbidden(); }

/* The note of the block around p, which lies on unit u, of a slab of class k.  *start: p is where a block begins. */
HAK_INLINE hak_note_t *hak_note_of(const void *p, uint32_t u, const hak_class_t *k, bool *start)
{
	size_t offset = (uintptr_t)p % HAK_UNIT, i;
	if (k->units > 1) {
		uint32_t back = hak_slab_of(u)->back;
		u -= back;
		offset += (size_t)back << HAK_UNIT_SHIFT;
	}
	i = (offset * k->reciprocal) >> 40;
	*start = i * k->size == offset;
	return &hak_super_of(u)->note[u % HAK_SUPER_UNITS][i];
}

/* What is known of the block that p points to, for a message.  *error: something else where the end of a slab is, too
 * short for a block.  Takes no lock. */
static HAK_COLD void hak_describe(const void *p, int *error, char *out, size_t room)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u), c = hak_word_class(word);
	const char *asked = HAK_HARDENED ? ", asked for " : "";
	char number[24] = "", inside[40] = "";
	bool start;

	*out = '\0';
	if (hak_word_owner(word) < HAK_OWNER_ORPHAN)
		return;
	const hak_class_t *k = &hak_class[c];
	uint64_t offset = (uint64_t)((const char *)p - hak_slab_head(u)->base), index = (offset * k->reciprocal) >> 40;
	if (index >= k->blocks) {
		*error = HAK_ERR_FOREIGN;
		return;
	}
	offset -= index * k->size;
	if (offset)
		snprintf(inside, sizeof inside, "%u bytes into ", (unsigned)offset);
	if (HAK_HARDENED) {
		hak_note_t note = hak_load(hak_note_of(p, u, k, &start));
		if (hak_note_state(note) == HAK_NOTE_FREED)
			asked = ", freed by thread ";
		else if (hak_note_state(note) == HAK_NOTE_NEW)
			asked = ", never handed out";
		if (hak_note_state(note) != HAK_NOTE_NEW)
			snprintf(number, sizeof number, "%u", hak_note_value(note));
	}
	snprintf(out, room, " (%sa block of %u bytes, class %u%s%s)", inside, k->size, c, asked, number);
}

/* The last words.  Whoever catches SIGABRT may still allocate: no lock stops this thread from here on. */
static _Noreturn HAK_COLD void hak_die(const char *call, const void *p, int error)
{
	char what[160];
	hak_describe(p, &error, what, sizeof what);
	hak_sayf("hakmem: %s(%p): %s%s\n", call, p, hak_error_texts[error], what);
	hak_store(&hak_dying, true);
	hak_store(&hak_fork_thread, &hak_thread);
	abort();
}

/* Bytes that a block needs whose caller asks for n: the first of its seal, too. */
HAK_INLINE size_t hak_guard_room(size_t n) { return HAK_HARDENED ? n + (n != SIZE_MAX) : n; }

HAK_INLINE uint64_t hak_guard_seal(const void *p)
{
	return ((uintptr_t)p ^ hak_boot.secret[1]) | 0x0101010101010101u; /* no byte is 0: strings end in those */
}

/* A seal is written and read as 8 bytes that end with the room at the latest, so some may be the caller's. */
HAK_INLINE size_t hak_guard_seal_place(size_t n, size_t room) { return n < room - HAK_SEAL ? n : room - HAK_SEAL; }

HAK_INLINE bool hak_guard_is_sealed(const void *p, size_t n, size_t room)
{
	size_t at = hak_guard_seal_place(n, room);
	uint64_t now;
	memcpy(&now, (const char *)p + at, HAK_SEAL);
	return hak_drop_bytes(now ^ hak_guard_seal(p), n - at) == 0;
}

/* The same without a byte of the caller's. */
static HAK_NOINLINE void hak_guard_seal_exactly(void *p, size_t n, size_t room)
{
	size_t at = hak_guard_seal_place(n, room);
	uint64_t seal = hak_guard_seal(p);
	memcpy((char *)p + n, (char *)&seal + (n - at), HAK_SEAL - (n - at));
}

static HAK_COLD bool hak_guard_is_filled(const char *p, size_t from, size_t to)
{
	/* If the first byte is, and each is as the one before it, then all are. */
	return from >= to || ((unsigned char)p[from] == HAK_FILL && memcmp(p + from, p + from + 1, to - from - 1) == 0);
}

/* What is wrong with a live block that somebody wants to free, or nothing.  *note: as it stands. */
HAK_INLINE int hak_guard_error(const void *p, const hak_class_t *k, bool start, hak_note_t note)
{
	size_t n = hak_note_value(note);
	if (hak_unlikely(!start))
		return HAK_ERR_INTERIOR;
	if (hak_unlikely(hak_note_state(note) != HAK_NOTE_LIVE))
		return HAK_ERR_ALREADY_FREE;
	if (hak_unlikely(!hak_guard_is_sealed(p, n, k->size)))
		return HAK_ERR_OVERRUN;
	if (hak_guard_fills() && !hak_guard_is_filled(p, n + HAK_SEAL, k->size))
		return HAK_ERR_OVERRUN;
	return HAK_ERR_OK;
}

/* Level 2, a block of a class on its way to a caller. */
static HAK_COLD void hak_guard_check_fill(void *p, const hak_class_t *k, hak_note_t note)
{
	if (hak_note_state(note) == HAK_NOTE_NEW)
		memset(p, HAK_FILL, k->size);
	else if (!hak_guard_is_filled(p, 0, k->size))
		hak_die("malloc", p, HAK_ERR_STALE);
}

/* A block goes to a caller that asked for n bytes. */
HAK_INLINE void hak_guard_open(void *p, hak_note_t *note, const hak_class_t *k, size_t n)
{
	uint64_t seal = hak_guard_seal(p);
	hak_store(note, hak_note_make(HAK_NOTE_LIVE, n));
	memcpy((char *)p + hak_guard_seal_place(n, k->size), &seal, HAK_SEAL);
}

/* Any thread frees a block of class c, and another may free it at the same time. */
static HAK_NOINLINE void hak_guard_close_slow(void *p, uint32_t u, size_t c, uint32_t thread)
{
	const hak_class_t *k = &hak_class[c];
	bool start;
	hak_note_t *note = hak_note_of(p, u, k, &start), was = hak_load(note);
	int error = hak_guard_error(p, k, start, was);

	if (!error && !hak_cas(note, &was, hak_note_make(HAK_NOTE_FREED, thread)))
		error = HAK_ERR_ALREADY_FREE;
	if (error)
		hak_die("free", p, error);
	if (hak_guard_fills())
		memset(p, HAK_FILL, k->size);
}

/* A large block or a whale: how long it is, and the bytes of it that its caller asked for.  0: there is none. */
static size_t hak_guard_large(const void *p, uint32_t u, size_t *asked)
{
	if (hak_word(u) != HAK_RUN_HEAD)
		return hak_whale_size(p, asked);
	*asked = hak_load(&hak_slab_of(u)->asked);
	return hak_slab_of(u)->base == p ? (size_t)hak_load(&hak_slab_of(u)->len) << HAK_UNIT_SHIFT : 0;
}

/* What is wrong with the live block at p, for calls that do not abort. */
static HAK_COLD int hak_guard_check(const void *p)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u);
	const hak_class_t *k = &hak_class[hak_word_class(word)];
	size_t asked, room;
	bool start;

	if (hak_word_owner(word) >= HAK_OWNER_ORPHAN) {
		const hak_note_t *note = hak_note_of(p, u, k, &start);
		return hak_guard_error(p, k, start, hak_load(note));
	}
	room = hak_guard_large(p, u, &asked);
	return room && !hak_guard_is_sealed(p, asked, room) ? HAK_ERR_OVERRUN : HAK_ERR_OK;
}

static HAK_NOINLINE void hak_guard_check_for(const char *call, const void *p)
{
	int error = hak_guard_check(p);
	if (error)
		hak_die(call, p, error);
}

/* Any block on its way to its caller, who asked for n bytes; p may be NULL. */
static HAK_NOINLINE void *hak_guard_open_slow(void *p, size_t n)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u);
	size_t room;
	bool start;

	if (!p)
		return NULL;
	if (hak_word_owner(word) >= HAK_OWNER_ORPHAN) {
		const hak_class_t *k = &hak_class[hak_word_class(word)];
		hak_note_t *note = hak_note_of(p, u, k, &start), was = hak_load(note);
		if (hak_unlikely(hak_note_state(was) == HAK_NOTE_LIVE))
			hak_die("malloc", p, HAK_ERR_IN_USE);
		if (hak_guard_fills())
			hak_guard_check_fill(p, k, was);
		hak_guard_open(p, note, k, n);
		return p;
	}
	if (word == HAK_RUN_HEAD) {
		hak_store(&hak_slab_of(u)->asked, n);
		room = (size_t)hak_slab_of(u)->len << HAK_UNIT_SHIFT;
	} else {
		room = hak_whale_ask(p, n);
	}
	hak_guard_seal_exactly(p, n, room);
	return p;
}

/* The same two on the fast paths: plain classes in the first range, and to be freed by their owner. */
HAK_INLINE void *hak_guard_open_hot(void *p, const hak_class_t *k, size_t n)
{
	size_t u = ((uintptr_t)p - hak_fast.base) >> HAK_UNIT_SHIFT;
	if (hak_unlikely(u >= hak_fast.units || !k->plain))
		return hak_guard_open_slow(p, n);
	uint64_t index = ((uintptr_t)p % HAK_UNIT * k->reciprocal) >> 40;
	hak_note_t *note = &hak_super_of((uint32_t)u)->note[u % HAK_SUPER_UNITS][index];
	if (hak_unlikely(hak_note_state(hak_load(note)) == HAK_NOTE_LIVE))
		return hak_guard_open_slow(p, n);
	hak_guard_open(p, note, k, n);
	return p;
}

HAK_INLINE bool hak_guard_close_hot(void *p, uint32_t u, const hak_class_t *k, uint32_t thread) /* false: not plain, or bad */
{
	uint64_t offset = (uintptr_t)p % HAK_UNIT, index = (offset * k->reciprocal) >> 40;
	hak_note_t *note = &hak_super_of(u)->note[u % HAK_SUPER_UNITS][index], was = hak_load(note);
	if (hak_unlikely(!k->plain || hak_note_state(was) != HAK_NOTE_LIVE || index * k->size != offset
	                 || !hak_guard_is_sealed(p, hak_note_value(was), k->size)))
		return false;
	hak_store(note, hak_note_make(HAK_NOTE_FREED, thread));
	return true;
}

HAK_INLINE void *hak_guard_open_any(void *p, size_t n) { return HAK_HARDENED ? hak_guard_open_slow(p, n) : p; }

/* Bytes that the caller of the live block p, of class k, asked for. */
static size_t hak_guard_asked(const void *p, uint32_t u, const hak_class_t *k, const char *call)
{
	bool start;
	hak_note_t note = hak_load(hak_note_of(p, u, k, &start));
	if (!start || hak_note_state(note) != HAK_NOTE_LIVE)
		hak_die(call, p, start ? HAK_ERR_ALREADY_FREE : HAK_ERR_INTERIOR);
	return hak_note_value(note);
}

/* A block that stays where it is, and has n bytes from now on. */
static HAK_NOINLINE void *hak_guard_resize(void *p, size_t n)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u);
	const hak_class_t *k = &hak_class[hak_word_class(word)];
	bool start;
	hak_note_t *note;
	int error;

	if (hak_word_owner(word) < HAK_OWNER_ORPHAN) {
		hak_guard_check_for("realloc", p);
		return hak_guard_open_slow(p, n);
	}
	note = hak_note_of(p, u, k, &start);
	error = hak_guard_error(p, k, start, hak_load(note));
	if (error)
		hak_die("realloc", p, error);
	hak_store(note, hak_note_make(HAK_NOTE_LIVE, n));
	if (hak_guard_fills())
		memset((char *)p + n, HAK_FILL, k->size - n);
	hak_guard_seal_exactly(p, n, k->size);
	return p;
}

HAK_INLINE void *hak_guard_resize_any(void *p, size_t n) { return HAK_HARDENED ? hak_guard_resize(p, n) : p; }

#if HAK_HARDENED
static HAK_COLD void hak_guard_tables(void) /* still to be read: garbage collectors and leak checkers scan static data */
{
	hak_os_freeze(hak_tables.before, sizeof hak_tables.before);
	hak_os_freeze(hak_tables.behind, sizeof hak_tables.behind);
}
#else
static void hak_guard_tables(void) {}
#endif

static HAK_COLD void hak_guard_init(void)
{
	hak_os_random(hak_boot.secret, sizeof hak_boot.secret);
	for (int i = 0; i < 2; i++) /* the C library makes secrets of its own of what they may be made of: not the same ones */
		hak_boot.secret[i] = (hak_boot.secret[i] ^ hak_boot.secret[i] >> 31) * 0xBF58476D1CE4E5B9u;
	hak_boot.secret[0] |= 1;
	hak_guard_tables();
}

/* A number below n that nobody outside can tell; v changes with each call. */
HAK_INLINE uint32_t hak_guard_random(uint64_t v, uint32_t n)
{
	v = (v + hak_boot.secret[1]) * hak_boot.secret[0];
	v = (v ^ v >> 32) * 0xD6E8FEB86659FD93u; /* any odd number; what comes out is no longer linear in v */
	return (uint32_t)((v >> 32) * n >> 32);
}

/* Puts p into a stack at a place that nobody outside can tell: the block that stood there goes on top.  Owner. */
HAK_INLINE void hak_guard_push(hak_heap_t *h, size_t c, uint64_t v, void *p)
{
	uint32_t at = (uint32_t)(v & 0xFFFF) + 1, level = at - h->floor[c];
	uint32_t i = at - hak_guard_random(v, level);
	h->slot[at] = p;
	h->slot[at] = h->slot[i];
	h->slot[i] = p;
}

/* The blocks of a refill, in an order that nobody outside can tell. */
static HAK_NOINLINE void hak_guard_mix(void **block, uint32_t n, uint64_t v)
{
	for (uint32_t i = n; i > 1; i--) {
		uint32_t k = hak_guard_random(v += 0x10001, i);
		void *p = block[k];
		block[k] = block[i - 1];
		block[i - 1] = p;
	}
}

/* One of the free blocks of s, where there is no stack to mix them in. */
static HAK_NOINLINE void *hak_guard_take(hak_slab_t *s, const hak_class_t *k, uint64_t v)
{
	uint32_t nth = hak_guard_random(v, s->free), w = 0, bits;
	for (; nth >= (bits = (uint32_t)__builtin_popcountll(s->map[w])); w++)
		nth -= bits;
	uint64_t rest = s->map[w];
	while (nth--)
		rest &= rest - 1;
	uint32_t at = (uint32_t)__builtin_ctzll(rest);
	s->map[w] &= ~(1ull << at);
	s->free--;
	s->used++;
	return s->base + (size_t)(w * 64 + at) * k->size;
}

/* ===================================================== heaps =================================================== */

static void hak_claim(hak_heap_t *h) { hak_lock(&h->claim); }
static void hak_unclaim(hak_heap_t *h) { hak_unlock(&h->claim); }

/* The calls below that end in _locked want the heap's claim. */

static void hak_heap_enlist_locked(hak_heap_t *h, hak_slab_t *s, const hak_class_t *k)
{
	hak_bin_t *b = &h->bin[s->class];
	s->where = hak_slab_has_room(s, k) ? HAK_IN_PARTIAL : HAK_IN_FULL;
	hak_list_append(s->where == HAK_IN_PARTIAL ? &b->partial : &b->full, s);
}

static void hak_heap_delist_locked(hak_heap_t *h, hak_slab_t *s)
{
	hak_bin_t *b = &h->bin[s->class];
	if (s->where == HAK_IN_CURRENT)
		b->current = NULL;
	else
		hak_list_remove(s->where == HAK_IN_PARTIAL ? &b->partial : &b->full, s);
	s->where = HAK_IN_NONE;
}

/* An empty slab goes back to the page heap. */
static void hak_heap_release_locked(hak_heap_t *h, hak_slab_t *s)
{
	hak_bin_t *b = &h->bin[s->class];
	hak_heap_delist_locked(h, s);
	hak_count(&b->slabs, -1ull);
	hak_count(&h->count.slabs_released, 1u);
	hak_page_release(s->unit, s->len);
}

/* A block of slab s, which h owns, goes into the bitmap.  An empty slab is released; the owner keeps the current one,
 * so that a thread at the edge of a slab does not go to the page heap each time.  Returns whether s is gone. */
HAK_INLINE bool hak_heap_put_locked(hak_heap_t *h, hak_slab_t *s, const hak_class_t *k, const void *p, bool owner)
{
	uint32_t i;
	int error = hak_slab_index(s, k, p, &i);
	if (hak_unlikely(error))
		hak_die("free", p, error);
	hak_slab_put(s, i);
	hak_count(&h->bin[s->class].used, -1ull);
	h->used_bytes[k->tier] -= k->size;
	hak_gauge_watch_locked(h, k->tier);
	if (hak_unlikely(s->where == HAK_IN_FULL)) {
		hak_heap_delist_locked(h, s);
		hak_heap_enlist_locked(h, s, k);
	}
	if (hak_likely(s->used != 0) || (owner && s->where == HAK_IN_CURRENT && k->tier != HAK_TIER_l25))
		return false;
	hak_heap_release_locked(h, s);
	return true;
}

HAK_INLINE uint64_t hak_heap_used_locked(const hak_heap_t *h) /* bytes */
{
	uint64_t sum = 0;
	for (int t = 0; t < HAK_TIER_whale; t++)
		sum += h->used_bytes[t];
	return sum;
}

static hak_heap_t *hak_heap_by_id(uint32_t id)
{
	return id < HAK_HEAPS_MAX ? hak_load_acquire(&hak_heap[id]) : NULL;
}

/* Stacks at their first capacity, in the small regions.  Owner, stacks empty. */
static void hak_heap_stack_reset(hak_heap_t *h, uint32_t c)
{
	const hak_class_t *k = &hak_class[c];
	h->floor[c] = k->small;
	h->top[c] = (uint16_t)(k->small + (k->cached ? k->first : 0));
	hak_store(&h->v[c], (h->v[c] & ~0xFFFFull) | k->small);
	h->bin[c].refills = h->bin[c].flushes = 0;
}

HAK_INLINE uint32_t hak_heap_level(const hak_heap_t *h, uint32_t c)
{
	return (uint32_t)(hak_load(&h->v[c]) & 0xFFFF) - h->floor[c];
}

/* Sets the capacity; the level fits already.  Owner. */
static void hak_heap_stack_resize(hak_heap_t *h, uint32_t c, uint32_t capacity)
{
	const hak_class_t *k = &hak_class[c];
	uint16_t to = capacity > k->first ? k->large : k->small;
	uint32_t level = hak_heap_level(h, c);

	if (to != h->floor[c]) {
		memcpy(&h->slot[to + 1], &h->slot[h->floor[c] + 1], level * sizeof(void *));
		hak_store(&h->v[c], (h->v[c] & ~0xFFFFull) | (to + level));
		h->floor[c] = to;
	}
	h->top[c] = (uint16_t)(to + capacity);
}

/* Puts a block into a stack that has room.  Owner, slow paths. */
static void hak_heap_push(hak_heap_t *h, uint32_t c, void *p)
{
	uint64_t v = h->v[c];
	if (HAK_HARDENED)
		hak_guard_push(h, c, v, p);
	else
		h->slot[(v & 0xFFFF) + 1] = p;
	hak_store(&h->v[c], v + 1);
}

/* Moves the n oldest blocks of a stack into bitmaps.  Owner. */
static void hak_heap_flush_locked(hak_heap_t *h, uint32_t c, uint32_t n)
{
	const hak_class_t *k = &hak_class[c];
	void **bottom = &h->slot[h->floor[c] + 1];
	uint32_t level = hak_heap_level(h, c);
	hak_slab_t *s = NULL;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t u = hak_unit_of(bottom[i]);
		if (!s || u - s->unit >= s->len) {
			if (hak_unlikely(hak_word(u) != (h->tag | c))) /* its slab is gone: it stood here twice */
				hak_die("free", bottom[i], HAK_ERR_ALREADY_FREE);
			s = hak_slab_head(u);
		}
		if (hak_heap_put_locked(h, s, k, bottom[i], true))
			s = NULL;
	}
	memmove(bottom, bottom + n, (level - n) * sizeof(void *));
	hak_store(&h->v[c], h->v[c] - n);
	hak_count(&h->bin[c].flushed, n);
	hak_count(&h->count.flush_blocks, n);
}

/* All of them, down to nothing and to their first capacity.  Owner. */
static HAK_COLD void hak_heap_flush_all_locked(hak_heap_t *h)
{
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		hak_heap_flush_locked(h, c, hak_heap_level(h, c));
		hak_heap_stack_reset(h, c);
	}
}

static uint64_t hak_heap_slab_bytes(const hak_heap_t *h)
{
	uint64_t sum = 0;
	for (uint32_t c = 0; c < HAK_CLASSES; c++)
		sum += (uint64_t)h->bin[c].slabs * hak_class[c].units;
	return sum << HAK_UNIT_SHIFT;
}

/* Gives back what slabs hold beside used blocks: empty current slabs, and OS pages without a used block. */
static HAK_COLD size_t hak_heap_purge_locked(hak_heap_t *h)
{
	size_t sum = 0;
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		hak_bin_t *b = &h->bin[c];
		if (b->current && b->current->used == 0)
			hak_heap_release_locked(h, b->current);
		if (b->current)
			sum += hak_slab_purge(b->current);
		for (hak_slab_t *s = b->partial.head; s; s = s->next)
			sum += hak_slab_purge(s);
	}
	hak_count(&h->count.slab_purged_bytes, sum);
	return sum;
}

/* A heap whose live bytes have halved since it was last looked at: its stacks go down to nothing (owner only), and
 * where slabs hold more that is free than that is used, their free OS pages go back.  A program that frees nearly
 * everything and then sits idle gets here on its way down: later there would be no call to do it in.  Each pass is
 * paid for by the frees of half of what was live. */
static HAK_COLD void hak_heap_settle_locked(hak_heap_t *h, bool owner)
{
	uint64_t used, slack;
	if (owner)
		hak_heap_flush_all_locked(h);
	used = hak_heap_used_locked(h);
	slack = hak_heap_slab_bytes(h) - used;
	if (slack > used && slack > hak_target_retain() / 2)
		hak_heap_purge_locked(h);
	h->peak_bytes = used;
	hak_count(&h->count.settles, 1u);
}

HAK_INLINE void hak_heap_settle_maybe_locked(hak_heap_t *h, bool owner)
{
	if (hak_unlikely(h->peak_bytes > HAK_SETTLE_LEAST && hak_heap_used_locked(h) < h->peak_bytes / 2))
		hak_heap_settle_locked(h, owner);
}

/* ================================================== remote frees =============================================== */

static void hak_batch_recycle(hak_heap_t *h, hak_batch_t *b) /* owner of h; NULL: to the pool */
{
	hak_batch_t *first = b, *last = b;
	uint32_t n = 1;

	if (h) {
		b->next = h->spare;
		h->spare = b;
		if (++h->spares < 2 * HAK_POOL_MOVE)
			return;
		for (first = last = h->spare; n < HAK_POOL_MOVE; n++)
			last = last->next;
		h->spare = last->next;
		h->spares -= n;
	}
	hak_lock(&hak_pool.lock);
	last->next = hak_pool.free;
	hak_pool.free = first;
	hak_pool.count += n;
	hak_unlock(&hak_pool.lock);
}

static hak_batch_t *hak_batch_new(hak_heap_t *h) /* owner of h; NULL: out of memory */
{
	if (!h->spare) {
		hak_lock(&hak_pool.lock);
		while (hak_pool.free && h->spares < HAK_POOL_MOVE) {
			hak_batch_t *b = hak_pool.free;
			hak_pool.free = b->next;
			hak_pool.count--;
			b->next = h->spare;
			h->spare = b;
			h->spares++;
		}
		hak_unlock(&hak_pool.lock);
		hak_batch_t *fresh = h->spare ? NULL : hak_meta_alloc(4 * sizeof *fresh);
		for (uint32_t i = 0; fresh && i < 4; i++) {
			fresh[i].next = h->spare;
			h->spare = &fresh[i];
			h->spares++;
		}
		if (!h->spare)
			return NULL;
	}
	hak_batch_t *b = h->spare;
	h->spare = b->next;
	h->spares--;
	b->count = b->bytes = 0;
	return b;
}

/* An orphan with some room may be taken over; one with hardly any is not worth the lock. */
static void hak_orphan_enlist_locked(hak_slab_t *s)
{
	const hak_class_t *k = &hak_class[s->class];
	s->where = s->used + k->blocks / 8 < k->blocks ? HAK_IN_PARTIAL : HAK_IN_FULL;
	hak_list_append(s->where == HAK_IN_PARTIAL ? &hak_page.orphan[s->class] : &hak_page.orphan_full[s->class], s);
}

static void hak_gauge_tell_orphans_locked(void)
{
	for (int t = 0; t < HAK_TIER_whale; t++) {
		hak_gauge_add(t, -(int64_t)hak_page.orphan_untold[t]);
		hak_page.orphan_untold[t] = 0;
	}
}

/* A slab of a dead thread has got a free block, or is empty.  Lock of the page heap; returns whether too much is
 * kept now. */
static bool hak_orphan_put_locked(hak_slab_t *s, const void *p, uint64_t now)
{
	const hak_class_t *k = &hak_class[s->class];
	uint32_t i;
	int error = hak_slab_index(s, k, p, &i);
	if (hak_unlikely(error))
		hak_die("free", p, error);
	hak_slab_put(s, i);
	hak_count(&hak_page.orphan_used[s->class], -1ull);
	if ((hak_page.orphan_untold[k->tier] += k->size) >= HAK_GAUGE_MOST)
		hak_gauge_tell_orphans_locked();
	if (s->where == HAK_IN_PARTIAL && s->used != 0)
		return false;
	hak_list_remove(s->where == HAK_IN_FULL ? &hak_page.orphan_full[s->class] : &hak_page.orphan[s->class], s);
	if (s->used == 0) {
		s->where = HAK_IN_NONE;
		hak_count(&hak_page.orphans[s->class], -1ull);
		return hak_run_release_locked(s->unit, s->len, now);
	}
	hak_orphan_enlist_locked(s);
	return false;
}

/* Frees blocks of a batch that lie in orphaned slabs; the others stay in it. */
static HAK_NOINLINE void hak_batch_free_orphans(hak_batch_t *b)
{
	uint32_t kept = 0;
	bool over = false;
	uint64_t now = hak_os_now();

	hak_lock(&hak_page.lock);
	for (uint32_t i = 0; i < b->count; i++) {
		uint32_t u = hak_unit_of(b->block[i]), word = hak_word(u);
		if (hak_word_owner(word) != HAK_OWNER_ORPHAN) {
			b->block[kept++] = b->block[i];
			continue;
		}
		hak_count(&hak_page.orphan_received[hak_word_class(word)], 1u);
		over |= hak_orphan_put_locked(hak_slab_head(u), b->block[i], now);
	}
	b->count = kept;
	hak_unlock(&hak_page.lock);
	if (over)
		hak_page_purge(0, false);
}

/* Frees blocks of a batch that h owns into its bitmaps, or into its stacks where the owner does it and there is
 * room; the others stay in the batch.  Returns the bytes that it had. */
static uint32_t hak_batch_free_locked(hak_heap_t *h, hak_batch_t *b, bool owner)
{
	uint32_t kept = 0, stacked = 0;
	hak_slab_t *s = NULL;

	for (uint32_t i = 0; i < b->count; i++) {
		void *p = b->block[i];
		uint32_t u = hak_unit_of(p), word = hak_word(u), c = hak_word_class(word);
		if (hak_unlikely(hak_word_owner(word) != h->id)) {
			b->block[kept++] = p;
			continue;
		}
		hak_count(&h->bin[c].received, 1u);
		if (owner && (uint32_t)(h->v[c] & 0xFFFF) < h->top[c]) {
			hak_heap_push(h, c, p);
			hak_count(&h->bin[c].filled, 1u);
			stacked++;
			continue;
		}
		if (!s || u - s->unit >= s->len)
			s = hak_slab_head(u);
		if (hak_heap_put_locked(h, s, &hak_class[c], p, owner))
			s = NULL;
	}
	b->count = kept;
	hak_count(&h->count.refill_inbox_blocks, stacked);
	return b->bytes;
}

/* Empties h's inbox.  Batches that still hold blocks of others come back as a list, for hak_batch_reroute once the
 * claim is gone; empty ones go to `to` (the calling thread's own heap, or NULL). */
static hak_batch_t *hak_heap_drain_locked(hak_heap_t *h, bool owner, hak_heap_t *to, hak_batch_t *leave)
{
	hak_batch_t *b = hak_load(&h->inbox), *stray = NULL;
	uint32_t bytes = 0;

	if (b == leave || hak_fork_is_here()) /* what came since fork-prepare: see hak_fork_forget */
		return NULL;
	b = hak_exchange(&h->inbox, leave);
	if (b == HAK_CLOSED)
		b = NULL;
	while (b) {
		hak_batch_t *next = b->next;
		bytes += hak_batch_free_locked(h, b, owner);
		hak_count(&h->count.batches_drained, 1u);
		if (hak_unlikely(b->count)) {
			b->next = stray;
			stray = b;
		} else {
			hak_batch_recycle(to, b);
		}
		b = next;
	}
	hak_sub_shared(&h->inbox_bytes, bytes);
	return stray;
}

/* Frees one block wherever it belongs now, without needing memory: under the claim of its owner, or the page heap's
 * lock.  For blocks in batches that arrived too late, and for threads without a heap.  `received`: it was counted as
 * sent before. */
static HAK_NOINLINE void hak_block_free_anywhere(void *p, bool received)
{
	for (;;) {
		uint32_t u = hak_unit_of(p), word = hak_word(u), owner = hak_word_owner(word), c = hak_word_class(word);
		bool over;
		if (owner == HAK_OWNER_ORPHAN) {
			hak_lock(&hak_page.lock);
			if (hak_word(u) != word) { /* taken over in between */
				hak_unlock(&hak_page.lock);
				continue;
			}
			hak_count(received ? &hak_page.orphan_received[c] : &hak_page.orphan_claimed[c], 1u);
			over = hak_orphan_put_locked(hak_slab_head(u), p, hak_os_now());
			hak_unlock(&hak_page.lock);
			if (over)
				hak_page_purge(0, false);
			return;
		}
		hak_heap_t *h = owner >= HAK_OWNER_SHARED ? hak_heap_by_id(owner) : NULL;
		if (!h)
			hak_die("free", p, owner == HAK_OWNER_NONE ? HAK_ERR_ALREADY_FREE : HAK_ERR_FOREIGN);
		hak_claim(h);
		if (hak_word(u) == word) {
			hak_count(received ? &h->bin[c].received : &h->bin[c].claimed, 1u);
			hak_heap_put_locked(h, hak_slab_head(u), &hak_class[c], p, h->id == HAK_OWNER_SHARED);
			hak_heap_settle_maybe_locked(h, false);
			hak_unclaim(h);
			return;
		}
		hak_unclaim(h);
	}
}

/* Batches whose blocks have changed hands since they were written.  No claim. */
static HAK_COLD void hak_batch_reroute(hak_heap_t *to, hak_batch_t *b)
{
	for (hak_batch_t *next; b; b = next) {
		next = b->next;
		hak_batch_free_orphans(b);
		for (uint32_t i = 0; i < b->count; i++)
			hak_block_free_anywhere(b->block[i], true);
		hak_batch_recycle(to, b);
	}
}

/* All slabs of h go to whoever needs them next: empty ones to the page heap, the others to the orphans.  Returns
 * whether too much is kept now. */
static HAK_COLD bool hak_heap_disown_locked(hak_heap_t *h)
{
	uint64_t now = hak_os_now();
	bool over = false;

	hak_lock(&hak_page.lock);
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		hak_bin_t *b = &h->bin[c];
		for (hak_slab_t *s; (s = b->current ? b->current : b->partial.head ? b->partial.head : b->full.head);) {
			hak_heap_delist_locked(h, s);
			if (s->used == 0) {
				over |= hak_run_release_locked(s->unit, s->len, now);
				hak_count(&h->count.slabs_released, 1u);
				continue;
			}
			hak_words_set(s->unit, s->len, (HAK_OWNER_ORPHAN << 8) | c);
			hak_count(&hak_page.orphans[c], 1u);
			hak_count(&hak_page.orphan_used[c], s->used);
			hak_orphan_enlist_locked(s);
		}
		hak_store(&b->slabs, 0u);
		hak_store(&b->used, 0u);
	}
	for (int t = 0; t < HAK_TIER_whale; t++) { /* before anybody frees a block of these orphans: the gauges count them */
		hak_gauge_tell_locked(h, t);
		h->used_bytes[t] = h->told_bytes[t] = h->told_low[t] = h->told_span[t] = 0;
	}
	hak_unlock(&hak_page.lock);
	h->peak_bytes = 0;
	h->left_alone = 0;
	h->lost = 1;
	return over;
}

/* Empties the inbox of h on behalf of `to`, the calling thread's heap or NULL. */
static HAK_COLD void hak_heap_drain(hak_heap_t *h, hak_heap_t *to)
{
	hak_batch_t *stray = NULL;
	if (!h)
		return;
	hak_claim(h);
	if (hak_load(&h->inbox) != HAK_CLOSED)
		stray = hak_heap_drain_locked(h, false, to, NULL);
	hak_unclaim(h);
	hak_batch_reroute(to, stray);
}

/* Sends a batch on its way.  `self` is the calling thread's heap; it holds no claim. */
static HAK_NOINLINE void hak_batch_post(hak_heap_t *self, hak_batch_t *b, uint32_t owner)
{
	hak_heap_t *h = owner >= HAK_OWNER_FIRST ? hak_heap_by_id(owner) : NULL;
	hak_batch_t *seen;

	if (!h) { /* orphans; the shared heap gets no batches */
		hak_count(&self->count.batches_orphaned, 1u);
		b->next = NULL;
		hak_batch_reroute(self, b);
		return;
	}
	if (hak_load(&h->inbox_bytes) >= hak_target_remote()) {
		/* The owner does not come to its inbox: do its work for it, rather than let memory pile up.  And if it has
		 * not come for long, others may have its slabs. */
		hak_batch_t *stray;
		bool over = false;
		hak_claim(h);
		stray = hak_load(&h->inbox) == HAK_CLOSED ? NULL : hak_heap_drain_locked(h, false, self, NULL);
		hak_batch_free_locked(h, b, false);
		if (++h->left_alone >= HAK_LEFT_ALONE)
			over = hak_heap_disown_locked(h);
		hak_unclaim(h);
		hak_count(&self->count.batches_claimed, 1u);
		b->next = stray;
		hak_batch_reroute(self, b);
		if (over)
			hak_page_purge(0, false);
		return;
	}
	hak_add_shared(&h->inbox_bytes, b->bytes);
	seen = hak_load(&h->inbox);
	do {
		if (seen == HAK_CLOSED) { /* its thread has ended */
			hak_sub_shared(&h->inbox_bytes, b->bytes);
			hak_count(&self->count.batches_rerouted, 1u);
			b->next = NULL;
			hak_batch_reroute(self, b);
			return;
		}
		if (!seen)
			hak_store(&h->inbox_stamp, hak_os_now());
		b->next = seen;
	} while (!hak_cas(&h->inbox, &seen, b));
	hak_count(&self->count.batches_posted, 1u);
}

static HAK_NOINLINE void hak_heap_post_all(hak_heap_t *h) /* owner */
{
	for (uint32_t i = 0; i < HAK_OUT_SLOTS; i++) {
		hak_batch_t *b = h->out[i];
		h->out[i] = NULL;
		if (b)
			hak_batch_post(h, b, h->out_owner[i]);
	}
}

/* Puts a block into the batch for its owner.  Owner of h. */
HAK_INLINE void hak_remote_send(hak_heap_t *h, void *p, uint32_t word, bool strayed)
{
	uint32_t owner = hak_word_owner(word), c = hak_word_class(word), size = hak_class[c].size;
	uint32_t i = owner % HAK_OUT_SLOTS;
	hak_batch_t *b = h->out[i];

	if (owner == HAK_OWNER_SHARED) {
		hak_block_free_anywhere(p, strayed);
		return;
	}
	if (b && h->out_owner[i] != owner) {
		h->out[i] = NULL;
		hak_batch_post(h, b, h->out_owner[i]);
		b = NULL;
	}
	if (!b) {
		if (!(b = hak_batch_new(h))) {
			hak_block_free_anywhere(p, strayed);
			return;
		}
		h->out_owner[i] = owner;
		h->out[i] = b;
	}
	if (!strayed)
		hak_count(&h->bin[c].sent, 1u);
	b->block[b->count++] = p;
	b->bytes += size;
	if (b->count == HAK_REMOTE_BLOCKS || b->bytes >= hak_target_remote() || size >= HAK_REMOTE_AT_ONCE) {
		h->out[i] = NULL;
		hak_batch_post(h, b, owner);
	}
}

/* A block that another heap owns, or none.  Owner of h. */
static void hak_remote_free(hak_heap_t *h, void *p, uint32_t word)
{
	hak_count(&h->count.remote_frees, 1u);
	hak_remote_send(h, p, word, false);
}

/* Takes up to `most` blocks out of h's stacks whose slabs h has lost.  Owner, claim. */
static HAK_COLD uint32_t hak_heap_strays_locked(hak_heap_t *h, void **stray, uint32_t most)
{
	uint32_t n = 0;
	for (uint32_t c = 0; c < HAK_CLASSES; c++)
		for (uint32_t i = hak_heap_level(h, c); i > 0 && n < most; i--) {
			void **at = &h->slot[h->floor[c] + i];
			if (hak_word(hak_unit_of(*at)) == (h->tag | c))
				continue;
			stray[n++] = *at;
			*at = h->slot[h->v[c] & 0xFFFF];
			hak_store(&h->v[c], h->v[c] - 1);
			hak_count(&h->bin[c].flushed, 1u);
			hak_count(&h->bin[c].strayed, 1u);
		}
	return n;
}

/* Sorts the stacks out after a disowning: blocks of slabs that h does not own any more leave as others' do.  Owner, no
 * claim: what leaves may be posted, and that may need another's claim. */
static HAK_COLD void hak_heap_sort_out(hak_heap_t *h)
{
	void *stray[HAK_REMOTE_BLOCKS];
	uint32_t n;

	do {
		hak_claim(h);
		h->lost = 0;
		n = hak_heap_strays_locked(h, stray, HAK_REMOTE_BLOCKS);
		hak_unclaim(h);
		for (uint32_t i = 0; i < n; i++)
			hak_remote_send(h, stray[i], hak_word(hak_unit_of(stray[i])), true);
	} while (n == HAK_REMOTE_BLOCKS);
}

/* The claim of the calling thread's own heap, with stacks that may be flushed. */
static void hak_claim_own(hak_heap_t *h)
{
	for (;; hak_heap_sort_out(h)) {
		hak_claim(h);
		h->left_alone = 0;
		if (hak_likely(!h->lost))
			return;
		hak_unclaim(h);
	}
}

/* ================================================ refill and flush ============================================= */

/* A slab of class c for h: an orphan, else free units, else new memory.  NULL: out of memory. */
static HAK_NOINLINE hak_slab_t *hak_heap_new_slab_locked(hak_heap_t *h, uint32_t c)
{
	const hak_class_t *k = &hak_class[c];
	uint32_t units = hak_slab_units(k), u;
	hak_bin_t *b = &h->bin[c];
	bool zero;
	hak_slab_t *s;

	hak_lock(&hak_page.lock);
	if ((s = hak_page.orphan[c].head)) {
		hak_list_remove(&hak_page.orphan[c], s);
		hak_count(&hak_page.orphans[c], -1ull);
		hak_count(&hak_page.orphan_used[c], -(uint64_t)s->used);
		hak_words_set(s->unit, s->len, h->tag | c);
		hak_unlock(&hak_page.lock);
		hak_count(&b->used, s->used);
		h->used_bytes[k->tier] += (uint64_t)s->used * k->size;
		h->told_bytes[k->tier] += (uint64_t)s->used * k->size;
		h->told_low[k->tier] += (uint64_t)s->used * k->size;
		hak_count(&h->count.slabs_adopted, 1u);
	} else {
		u = hak_run_alloc_locked(units, hak_option.tiny_use_superslab ? 1 : HAK_SUPER_UNITS, &zero, hak_os_now());
		if (!u) {
			hak_unlock(&hak_page.lock);
			return NULL;
		}
		s = hak_slab_of(u);
		hak_slab_init(u, units, c);
		hak_words_set(u, units, h->tag | c);
		hak_unlock(&hak_page.lock);
		hak_count(&h->count.slabs_new, 1u);
	}
	hak_count(&b->slabs, 1u);
	return s;
}

/* Takes up to n blocks of class c out of h's slabs, in ascending order within each. */
static uint32_t hak_heap_take_locked(hak_heap_t *h, uint32_t c, void **out, uint32_t n)
{
	const hak_class_t *k = &hak_class[c];
	hak_bin_t *b = &h->bin[c];
	uint32_t got = 0, carved, carves = 0;

	while (got < n) {
		hak_slab_t *s = b->current;
		if (s) {
			if (HAK_HARDENED && n == 1 && s->free) {
				*out = hak_guard_take(s, k, h->v[c]);
				got = 1;
			} else {
				got += hak_slab_take(s, k, out + got, n - got, &carved);
				carves += carved;
			}
			if (hak_slab_has_room(s, k))
				break;
			hak_heap_delist_locked(h, s);
			hak_heap_enlist_locked(h, s, k);
		}
		if ((s = b->partial.head))
			hak_list_remove(&b->partial, s);
		else if (got || !(s = hak_heap_new_slab_locked(h, c)))
			break;
		b->current = s;
		s->where = HAK_IN_CURRENT;
	}
	hak_count(&b->used, got);
	h->used_bytes[k->tier] += (uint64_t)got * k->size;
	hak_gauge_watch_locked(h, k->tier);
	uint64_t used = hak_heap_used_locked(h);
	if (used > h->peak_bytes)
		h->peak_bytes = used;
	hak_count(&h->count.refill_carve_blocks, carves);
	hak_count(&h->count.refill_bitmap_blocks, got - carves);
	return got;
}

static bool hak_inbox_is_stale(const hak_heap_t *h, uint64_t now)
{
	const hak_batch_t *inbox = hak_load(&h->inbox);
	return inbox && inbox != HAK_CLOSED && now >= hak_load(&h->inbox_stamp) + HAK_STALE_MS;
}

/* Blocks that have lain in the inbox of an idle thread for long go back to their slabs: few as they are, each may
 * hold a slab.  One heap is looked at in a call, in turn. */
static HAK_COLD void hak_heap_help(hak_heap_t *self, uint64_t now)
{
	uint32_t made = hak_load_acquire(&hak_heaps.made), id = HAK_OWNER_FIRST + self->helped++ % made;
	hak_heap_t *h = hak_heap_by_id(id);
	hak_batch_t *stray = NULL;
	bool over = false;

	if (!h || h == self || !hak_inbox_is_stale(h, now))
		return;
	hak_claim(h);
	if (hak_inbox_is_stale(h, now)) { /* still */
		stray = hak_heap_drain_locked(h, false, self, NULL);
		over = hak_heap_disown_locked(h);
		hak_count(&self->count.inboxes_helped, 1u);
	}
	hak_unclaim(h);
	hak_batch_reroute(self, stray);
	if (over)
		hak_page_purge(0, false);
}

/* Every so many slow paths: post what has been pending for long, and give back what has been free for long. */
static HAK_COLD void hak_heap_tick_slow(hak_heap_t *h)
{
	uint64_t now = hak_os_now(), age = hak_target_purge();

	h->tick = HAK_TICK;
	if (now - h->out_stamp >= HAK_STALE_MS) {
		h->out_stamp = now;
		hak_heap_post_all(h);
	}
	hak_heap_help(h, now);
	if (hak_load(&hak_page.dirty_units) && now > age)
		hak_page_purge(now - age, false);
	if (hak_load(&hak_whales.kept_bytes) && now > age)
		hak_whale_purge(now - age);
}

HAK_INLINE void hak_heap_tick(hak_heap_t *h) /* owner, no claim */
{
	if (hak_unlikely(h->tick-- == 0))
		hak_heap_tick_slow(h);
}

/* ACE hears of a refill that brought n blocks, `carved` of them never used before; 0 blocks and p: from the inbox. */
static HAK_COLD void hak_heap_tell_ace_locked(hak_heap_t *h, uint32_t c, const void *p, uint32_t n, uint64_t carved)
{
	hak_bin_t *b = &h->bin[c];
	uint32_t level = hak_heap_level(h, c);

	if (!hak_ring_is_due(h->ring, ++b->untold_refills))
		return;
	hak_event_t e = {.ms = (uint32_t)(hak_os_now() - hak_boot.start), .refills = (uint16_t)b->untold_refills,
		.flushes = (uint16_t)hak_min32(b->untold_flushes, UINT16_MAX), .batch = (uint16_t)(n || !p ? n : level + 1), .level = (uint16_t)level,
		.capacity = (uint16_t)(h->top[c] - h->floor[c]), .class = (uint8_t)c,
		.from = !p ? HAK_FROM_NOTHING : !n ? HAK_FROM_INBOX : carved > n / 2 ? HAK_FROM_CARVE : HAK_FROM_BITMAP};
	b->untold_refills = b->untold_flushes = 0;
	hak_ring_put_locked(h->ring, &e);
}

/* The stack of class c is empty: fill it, and return one more block.  NULL: out of memory.  Owner. */
static HAK_NOINLINE void *hak_heap_refill(hak_heap_t *h, uint32_t c)
{
	const hak_class_t *k = &hak_class[c];
	hak_bin_t *b = &h->bin[c];
	void *block[HAK_BATCH_MOST + 1], *p;
	hak_batch_t *stray;
	uint32_t n, got = 0, at, capacity = (uint32_t)(h->top[c] - h->floor[c]);
	uint64_t carved = h->count.refill_carve_blocks;

	hak_claim(h);
	h->left_alone = 0;
	stray = hak_heap_drain_locked(h, true, h, NULL);
	if (hak_unlikely(capacity && capacity < hak_target_capacity(c))) {
		capacity = hak_target_capacity(c);
		hak_heap_stack_resize(h, c, capacity);
		hak_count(&h->count.cache_grows, 1u);
	}
	if (++b->refills >= 10) { /* ten refills with a flush among them: the stack is too small for what goes on */
		if (b->flushes && capacity && capacity < k->most) {
			capacity = hak_min32(capacity * 2, k->most);
			hak_heap_stack_resize(h, c, capacity);
			hak_count(&h->count.cache_grows, 1u);
		}
		b->refills = b->flushes = 0;
	}
	at = (uint32_t)(h->v[c] & 0xFFFF);
	p = h->slot[at];
	if (p) { /* the inbox had some */
		hak_store(&h->v[c], h->v[c] + 0xFFFF);
		hak_count(&b->misses, 1u);
		hak_count(&b->filled, -1ull);
	} else {
		n = hak_min32(hak_target_batch(c), hak_max32(capacity / 2, 1));
		got = hak_heap_take_locked(h, c, block, capacity ? n + 1 : 1);
		if (got) { /* top-down, so that pops come in the order of addresses */
			if (HAK_HARDENED)
				hak_guard_mix(block, got, h->v[c]);
			p = block[0];
			for (uint32_t i = got; --i > 0;)
				h->slot[++at] = block[i];
			uint64_t v = h->v[c] + 0x10000 + (got - 1);
			if (hak_unlikely(v >> 63)) { /* 47 bits of count: fold them */
				hak_count(&b->folded, v >> 16);
				v &= 0xFFFF;
			}
			hak_store(&h->v[c], v);
			hak_count(&b->filled, got - 1);
			hak_count(&b->misses, 1u);
		}
	}
	hak_count(&h->count.refills, 1u);
	if (hak_unlikely(h->ring != NULL))
		hak_heap_tell_ace_locked(h, c, p, got, h->count.refill_carve_blocks - carved);
	hak_unclaim(h);
	if (hak_unlikely(stray != NULL))
		hak_batch_reroute(h, stray);
	hak_heap_tick(h);
	return p;
}

/* The stack of class c is full, or the class has none.  Owner. */
static HAK_NOINLINE void hak_heap_overflow(hak_heap_t *h, uint32_t c, void *p)
{
	const hak_class_t *k = &hak_class[c];
	hak_bin_t *b = &h->bin[c];
	uint32_t capacity = (uint32_t)(h->top[c] - h->floor[c]);

	hak_claim_own(h);
	if (hak_unlikely(hak_word(hak_unit_of(p)) != (h->tag | c))) { /* disowned since we looked */
		hak_unclaim(h);
		hak_remote_free(h, p, hak_word(hak_unit_of(p)));
		return;
	}
	if (capacity == 0) {
		hak_count(&b->direct, 1u);
		hak_heap_put_locked(h, hak_slab_head(hak_unit_of(p)), k, p, true);
	} else {
		hak_heap_flush_locked(h, c, hak_min32((capacity + 1) / 2, hak_heap_level(h, c)));
		hak_count(&h->count.flushes, 1u);
		b->untold_flushes++;
		if (++b->flushes >= 8 && b->refills == 0 && capacity > k->first) {
			/* Only frees for long: what stands here is of no use to anybody. */
			capacity = hak_max32(capacity / 2, k->first);
			hak_heap_flush_locked(h, c, hak_heap_level(h, c) - hak_min32(hak_heap_level(h, c), capacity / 2));
			hak_heap_stack_resize(h, c, capacity);
			hak_count(&h->count.cache_shrinks, 1u);
			b->flushes = 0;
		}
		hak_heap_push(h, c, p);
	}
	hak_heap_settle_maybe_locked(h, true);
	hak_unclaim(h);
	hak_heap_tick(h);
}

/* ============================================ thread start and end ============================================= */

static HAK_COLD hak_heap_t *hak_heap_make_locked(uint32_t id) /* lock: heaps.  NULL: out of memory */
{
	hak_heap_t *h = hak_meta_alloc(sizeof *h + hak_boot.slots * sizeof(void *));
	if (!h)
		return NULL;
	h->id = id;
	h->tag = id << 8;
	h->inbox = HAK_CLOSED;
	if (hak_option.ace && id != HAK_OWNER_SHARED) /* that one is never refilled */
		h->ring = hak_ring_make();
	if (hak_fork_is_here())
		hak_lock_grab(&h->claim); /* in fork this thread holds every claim, and gives all of them back */
	for (uint32_t c = 0; c < HAK_CLASSES; c++)
		hak_heap_stack_reset(h, c);
	hak_store_release(&hak_heap[id], h);
	return h;
}

/* The heap of threads that have none: all threads without thread caches (P0), and threads near their end. */
static HAK_COLD hak_heap_t *hak_heap_shared(void)
{
	hak_heap_t *h = hak_heap_by_id(HAK_OWNER_SHARED);
	if (!h) {
		hak_lock(&hak_heaps.lock);
		if (!(h = hak_heap_by_id(HAK_OWNER_SHARED)) && (h = hak_heap_make_locked(HAK_OWNER_SHARED)))
			h->running = true;
		hak_unlock(&hak_heaps.lock);
	}
	return h;
}

/* Everything that h holds goes to whoever needs it next: blocks to their slabs, slabs as in hak_heap_disown_locked.
 * Owner, or fork's child for a thread that it has not got. */
static HAK_COLD void hak_heap_abandon(hak_heap_t *h, hak_heap_t *to)
{
	hak_batch_t *stray;
	bool over;

	hak_heap_post_all(h);
	hak_claim_own(h);
	stray = hak_heap_drain_locked(h, false, to, HAK_CLOSED);
	hak_heap_flush_all_locked(h);
	over = hak_heap_disown_locked(h);
	hak_unclaim(h);
	hak_batch_reroute(to, stray);
	hak_heap_post_all(h); /* what sorting the stacks out has put there */
	if (over)
		hak_page_purge(0, false);
	while (h->spare) { /* empty batches of a thread that is gone are for everybody */
		hak_batch_t *b = h->spare;
		h->spare = b->next;
		hak_batch_recycle(NULL, b);
	}
	h->spares = 0;
}

/* OS pages of a heap struct that no thread uses: the stacks. */
static size_t hak_heap_purge_stacks(hak_heap_t *h)
{
	uintptr_t from = hak_round_up((uintptr_t)h->slot, hak_boot.os_page);
	uintptr_t to = (uintptr_t)(h->slot + hak_boot.slots) & ~(uintptr_t)(hak_boot.os_page - 1);
	return from < to && hak_os_purge((void *)from, to - from) ? to - from : 0;
}

static HAK_COLD void hak_heap_retire(hak_heap_t *h)
{
	bool many;
	hak_heap_abandon(h, NULL);
	hak_lock(&hak_heaps.lock);
	many = hak_heaps.idle >= 8;
	hak_unlock(&hak_heaps.lock);
	if (many)
		hak_heap_purge_stacks(h);
	hak_lock(&hak_heaps.lock);
	hak_store(&h->thread, 0u);
	h->running = false;
	h->next_free = hak_heaps.free;
	hak_heaps.free = h;
	hak_heaps.idle++;
	hak_heaps.running--;
	hak_heaps.exited++;
	hak_unlock(&hak_heaps.lock);
}

/* Destructor of the thread-specific key.  Other keys' destructors still free blocks, so it asks to be called again,
 * as often as the system promises to, less one. */
static HAK_COLD void hak_heap_detach(void *heap)
{
	hak_heap_t *h = heap;
	int saved = errno;

	if (++h->dying < 3 && pthread_setspecific(hak_boot.key, h) == 0)
		return;
	hak_self = (hak_heap_t *)(uintptr_t)&hak_heap_dead; /* from here on every call takes the shared path */
	hak_heap_retire(h);
	errno = saved;
}

/* Runs once, at the first call that needs it: that may be before any constructor, and from inside the dynamic linker,
 * so nothing here may allocate. */
static HAK_COLD void hak_boot_init_slow(void)
{
	uint32_t zero = 0;
	int saved = errno;

	if (!hak_cas(&hak_boot.ready, &zero, 1u)) {
		while (hak_load_acquire(&hak_boot.ready) != 2)
			sched_yield();
		return;
	}
	hak_boot.os_page = (size_t)getauxval(AT_PAGESZ);
	hak_option_init();
	hak_class_init();
	hak_target_init();
	hak_boot.start = hak_os_now();
	if (HAK_HARDENED)
		hak_guard_init();
	hak_lock(&hak_page.lock);
	hak_range_reserve_locked(HAK_SUPER_UNITS);
	hak_unlock(&hak_page.lock);
	hak_boot.has_key = pthread_key_create(&hak_boot.key, hak_heap_detach) == 0;
	hak_store_release(&hak_boot.ready, 2u);
	errno = saved;
}

HAK_INLINE void hak_boot_init(void)
{
	if (hak_unlikely(hak_load_acquire(&hak_boot.ready) != 2))
		hak_boot_init_slow();
}

/* The calling thread's heap, made or taken over if it has none yet.  NULL: use the shared one. */
static HAK_NOINLINE hak_heap_t *hak_heap_attach(void)
{
	hak_heap_t *h = hak_self;
	if (hak_likely(h->id != 0))
		return h;
	if (h == &hak_heap_dead)
		return NULL;
	hak_boot_init();
	if (!hak_option.enable_tls || !hak_boot.has_key)
		return NULL;
	hak_lock(&hak_heaps.lock);
	if ((h = hak_heaps.free)) {
		hak_heaps.free = h->next_free;
		hak_heaps.idle--;
	} else if (hak_heaps.made + HAK_OWNER_FIRST < HAK_HEAPS_MAX
	           && (h = hak_heap_make_locked(hak_heaps.made + HAK_OWNER_FIRST))) {
		hak_store_release(&hak_heaps.made, hak_heaps.made + 1);
	}
	if (h) {
		h->running = true;
		hak_heaps.running++;
	}
	hak_unlock(&hak_heaps.lock);
	if (!h)
		return NULL;
	hak_claim(h);
	hak_store(&h->inbox, NULL);
	hak_unclaim(h);
	hak_store(&h->thread, (uint32_t)syscall(SYS_gettid));
	h->tick = HAK_TICK;
	h->dying = 0;
	hak_self = h;
	if (pthread_setspecific(hak_boot.key, h)) { /* may allocate: hak_self is set.  Without it nobody sees the thread end */
		hak_self = HAK_HEAP_START;
		hak_heap_retire(h);
		return NULL;
	}
	return h;
}

/* ================================================= large runs ================================================== */

static void hak_large_count_locked(int64_t units)
{
	hak_page.large_units += (uint64_t)units;
	hak_gauge_book(&hak_page.large_units_alloced, &hak_page.large_units_freed, units);
	hak_gauge_add(HAK_TIER_whale, units * (int64_t)HAK_UNIT);
}

/* A block above 1 MiB, or of an alignment above a unit. */
static HAK_NOINLINE void *hak_large_alloc(size_t n, size_t align, bool *zero)
{
	size_t units = (n + HAK_UNIT - 1) >> HAK_UNIT_SHIFT, align_units = align > HAK_UNIT ? align >> HAK_UNIT_SHIFT : 1;
	hak_slab_t *r = NULL;
	void *p;

	if (n > PTRDIFF_MAX - HAK_SUPER || align > PTRDIFF_MAX - HAK_SUPER) {
		errno = ENOMEM;
		return NULL;
	}
	hak_boot_init();
	if (units == 0)
		units = 1;
	if (units + align_units <= HAK_RUN_MAX / HAK_UNIT) {
		hak_lock(&hak_page.lock);
		uint32_t u = hak_run_alloc_locked((uint32_t)units, (uint32_t)align_units, zero, hak_os_now());
		if (u) {
			r = hak_slab_of(u);
			r->len = (uint32_t)units;
			hak_words_set(u + 1, (uint32_t)units - 1, HAK_RUN_BODY);
			hak_words_set(u, 1, HAK_RUN_HEAD);
			hak_page.large_blocks++;
			hak_page.large_allocs++;
			hak_large_count_locked((int64_t)units);
		}
		hak_unlock(&hak_page.lock);
		if (r)
			return r->base;
	}
	if (!(p = hak_whale_alloc(n ? n : 1, align > hak_boot.os_page ? align : hak_boot.os_page, zero)))
		errno = ENOMEM;
	return p;
}

static HAK_NOINLINE void hak_large_free(void *p, uint32_t u)
{
	bool over = false, good;
	hak_lock(&hak_page.lock);
	good = hak_word(u) == HAK_RUN_HEAD && hak_slab_of(u)->base == p;
	if (good) {
		uint32_t units = hak_slab_of(u)->len;
		hak_page.large_blocks--;
		hak_page.large_frees++;
		hak_large_count_locked(-(int64_t)units);
		over = hak_run_release_locked(u, units, hak_os_now());
	}
	hak_unlock(&hak_page.lock);
	if (!good)
		hak_die("free", p, HAK_ERR_INTERIOR);
	if (over)
		hak_page_purge(0, false);
}

/* Makes a run of `units` of the run at u, where it stands.  False: there is no room. */
static HAK_COLD bool hak_large_resize(uint32_t u, uint32_t units)
{
	hak_slab_t *r = hak_slab_of(u), *next = NULL;
	uint32_t len, more;
	uint64_t now = hak_os_now();
	bool fits = true, over = false;

	hak_lock(&hak_page.lock);
	len = r->len;
	if (units < len) {
		r->len = units;
		hak_large_count_locked(-(int64_t)(len - units));
		over = hak_run_release_locked(u + units, len - units, now);
	} else if (units > len) {
		more = units - len;
		fits = hak_super_of(u + len) && hak_word(u + len) == 0 && (next = hak_slab_of(u + len))->len >= more
		       && hak_run_permit_locked(next, 0, more);
		if (fits) {
			uint32_t left = next->len - more;
			uint64_t stamp = next->stamp;
			hak_slab_t *older = next->dirty ? next->older : hak_page.newest;
			hak_run_remove_locked(next);
			if (left)
				hak_run_insert_locked(u + units, left, hak_dirty_count(u + units, left), stamp, older);
			hak_dirty_set(u + len, more, true);
			hak_words_set(u + len, more, HAK_RUN_BODY);
			r->len = units;
			hak_large_count_locked((int64_t)more);
			hak_page.used_units += more;
			hak_page_peak_locked();
		}
	}
	hak_unlock(&hak_page.lock);
	if (over)
		hak_page_purge(0, false);
	return fits;
}

/* Moves a run that has no room to grow into a mapping of its own: its OS pages change their address, nothing is
 * copied, and from there on it grows by mremap.  NULL: the system will not, and the block is as it was. */
static HAK_COLD void *hak_large_to_whale(void *p, uint32_t u, size_t n)
{
	size_t len = (size_t)hak_slab_of(u)->len << HAK_UNIT_SHIFT, to = hak_round_up(n, hak_boot.os_page);
	char *moved, *base;
	hak_whale_t *w;

	hak_lock(&hak_whales.lock);
	w = hak_whale_entry_locked();
	hak_unlock(&hak_whales.lock);
	if (!w)
		return NULL;
	moved = hak_os_move(p, len);
	base = moved ? hak_os_remap(moved, len, to) : NULL;
	w->base = base ? base : moved;
	w->len = base ? to : len;
	if (moved && !base) /* back by hand: the system may have no mapping left to move it in */
		memcpy(p, moved, len);
	hak_lock(&hak_whales.lock);
	if (base) {
		hak_whales.allocs++;
		hak_whale_count_locked((int64_t)(to - len)); /* the rest of it has moved from one count to the other */
		hak_whale_enter_locked(w);
	} else if (moved) {
		hak_whale_keep_locked(w);
	} else {
		hak_whale_forget_locked(w);
	}
	hak_unlock(&hak_whales.lock);
	if (moved && !base)
		hak_whale_purge(0);
	if (base) {
		hak_lock(&hak_page.lock);
		uint32_t units = hak_slab_of(u)->len;
		hak_page.large_blocks--;
		hak_page.large_frees++;
		hak_page.large_units -= units;
		hak_dirty_set(u, units, false);
		hak_run_release_locked(u, units, hak_os_now());
		hak_unlock(&hak_page.lock);
	}
	return base;
}

/* ================================================== slow paths ================================================= */

/* One block of the heap that all threads without one share. */
static HAK_NOINLINE void *hak_shared_alloc(uint32_t c)
{
	hak_heap_t *h = hak_heap_shared();
	void *p = NULL;

	if (!h)
		return NULL;
	hak_claim(h);
	if (hak_heap_take_locked(h, c, &p, 1)) {
		hak_store(&h->v[c], h->v[c] + 0x10000);
		hak_count(&h->bin[c].misses, 1u);
	}
	hak_unclaim(h);
	return p;
}

/* The stack was empty, the size is above every class, or the thread has no heap yet.  The size comes, not the class:
 * before the first call has run the size tables are empty. */
static HAK_NOINLINE void *hak_malloc_slow(size_t n, size_t asked)
{
	hak_heap_t *h;
	void *p;
	bool zero;

	if (n > HAK_CLASS_MAX)
		return hak_guard_open_any(hak_large_alloc(n, 1, &zero), asked);
	hak_boot_init();
	do {
		h = hak_heap_attach();
		p = h ? hak_heap_refill(h, hak_class_of(n)) : hak_shared_alloc(hak_class_of(n));
	} while (hak_unlikely(!p) && hak_whale_purge(UINT64_MAX)); /* kept mappings take room from all tiers */
	if (hak_unlikely(!p))
		errno = ENOMEM;
	return hak_guard_open_any(p, asked);
}

static _Noreturn HAK_COLD void hak_free_bad(const void *p, const char *call)
{
	uint32_t u = hak_unit_of(p);
	bool ours = u < HAK_UNITS_MAX && hak_load_acquire(&hak_super[u / HAK_SUPER_UNITS]);
	char *base;
	int error = hak_word(u) == HAK_RUN_BODY || hak_whale_around(p, &base) ? HAK_ERR_INTERIOR
	          : ours ? HAK_ERR_ALREADY_FREE : HAK_ERR_FOREIGN;
	hak_die(call, p, error);
}

static _Noreturn HAK_COLD void hak_free_twice(const void *p)
{
	hak_die("free", p, HAK_ERR_ALREADY_FREE);
}

/* The heap of the thread that frees a block of a class; NULL: it has none. */
HAK_INLINE hak_heap_t *hak_free_heap(void *p, uint32_t u, uint32_t word)
{
	hak_heap_t *h = hak_heap_attach();
	if (HAK_HARDENED)
		hak_guard_close_slow(p, u, hak_word_class(word), h ? h->thread : (uint32_t)syscall(SYS_gettid));
	return h;
}

/* NULL, a full stack, a block of another heap or of none, a large block, or no block at all. */
static HAK_NOINLINE void hak_free_slow(void *p)
{
	uint32_t u, word, owner;
	hak_heap_t *h;
	int saved = errno;

	if (!p)
		return;
	u = hak_unit_of(p);
	word = hak_word(u);
	owner = hak_word_owner(word);
	if (owner < HAK_OWNER_ORPHAN) {
		if (HAK_HARDENED)
			hak_guard_check_for("free", p);
		if (word == HAK_RUN_HEAD)
			hak_large_free(p, u);
		else if (owner == HAK_OWNER_RUN || !hak_whale_free(p))
			hak_free_bad(p, "free");
	} else if (!(h = hak_free_heap(p, u, word))) {
		hak_block_free_anywhere(p, false);
	} else if (owner != h->id) {
		hak_remote_free(h, p, word);
		hak_heap_tick(h);
	} else {
		uint32_t c = hak_word_class(word), at = (uint32_t)(h->v[c] & 0xFFFF);
		if (!HAK_HARDENED && h->slot[at] == p)
			hak_free_twice(p);
		if (at == h->top[c])
			hak_heap_overflow(h, c, p);
		else /* in a range that the fast path does not know */
			hak_heap_push(h, c, p);
	}
	errno = saved;
}

/* =================================================== HOT PATHS ================================================= */

/* v holds the stack's index in its low 16 bits and the count of allocations above: a pop adds 1 to the count and
 * takes 1 from the index in one addition, 0xFFFF.  Below each stack stands a NULL, so an empty one needs no test of
 * its own. */
#define HAK_POP 0xFFFF
#define HAK_PUSH 1

/* A block of n bytes, for a caller that asked for so many. */
HAK_INLINE void *hak_hot_malloc_for(size_t n, size_t asked)
{
	hak_heap_t *h = hak_self;
	size_t c;

	if (hak_likely(n <= HAK_SMALL_MAX))
		c = hak_class_small[(n + 7) >> 3];
	else if (n <= HAK_MID_MAX)
		c = hak_class_mid[(n + 255) >> 8];
	else if (n <= HAK_CLASS_MAX)
		c = hak_class_big[(n + 8191) >> 13];
	else
		return hak_malloc_slow(n, asked);
	uint64_t v = hak_load(&h->v[c]);
	void *p = h->slot[v & 0xFFFF];
	if (hak_unlikely(!p))
		return hak_malloc_slow(n, asked);
	hak_store(&h->v[c], v + HAK_POP);
	return HAK_HARDENED ? hak_guard_open_hot(p, &hak_class[c], asked) : p;
}

HAK_INLINE void *hak_hot_malloc(size_t n) { return hak_hot_malloc_for(hak_guard_room(n), n); }

HAK_INLINE void hak_hot_free(void *p)
{
	hak_heap_t *h = hak_self;
	size_t u = ((uintptr_t)p - hak_fast.base) >> HAK_UNIT_SHIFT;

	if (hak_unlikely(u >= hak_fast.units))
		return hak_free_slow(p);
	/* One load and one comparison: on a unit with blocks, owned by this heap, and of which class. */
	size_t c = (uint32_t)(hak_load(&hak_unit[u]) - h->tag);
	if (hak_unlikely(c > 255))
		return hak_free_slow(p);
	uint64_t v = hak_load(&h->v[c]);
	size_t at = v & 0xFFFF;
	if (hak_unlikely(at == h->top[c]))
		return hak_free_slow(p);
	if (HAK_HARDENED) {
		if (hak_unlikely(!hak_guard_close_hot(p, (uint32_t)u, &hak_class[c], h->thread)))
			return hak_free_slow(p);
		hak_guard_push(h, c, v, p);
	} else {
		if (hak_unlikely(h->slot[at] == p))
			hak_free_twice(p);
		h->slot[at + 1] = p;
	}
	hak_store(&h->v[c], v + HAK_PUSH);
}

HAK_EXPORT void *hak_malloc(size_t n) { return hak_hot_malloc(n); }
HAK_EXPORT void hak_free(void *p) { hak_hot_free(p); }

/* ================================================= derived calls =============================================== */

HAK_EXPORT void *hak_calloc(size_t count, size_t size)
{
	size_t n;
	bool zero;
	void *p;

	if (hak_unlikely(__builtin_mul_overflow(count, size, &n))) {
		errno = ENOMEM;
		return NULL;
	}
	if (hak_unlikely(n > HAK_CLASS_MAX)) {
		p = hak_large_alloc(hak_guard_room(n), 1, &zero);
		return hak_guard_open_any(p && !zero ? memset(p, 0, n) : p, n);
	}
	p = hak_hot_malloc(n);
	return hak_likely(p != NULL) ? memset(p, 0, n) : p;
}

/* Bytes of the block at p that its caller may use, and those that it has room for.  Aborts if there is none. */
static size_t hak_block_size(const void *p, const char *call, size_t *room)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u);
	size_t asked;

	if (hak_word_owner(word) >= HAK_OWNER_ORPHAN) {
		const hak_class_t *k = &hak_class[hak_word_class(word)];
		uint64_t offset = (uint64_t)((const char *)p - hak_slab_head(u)->base);
		if (((offset * k->reciprocal) >> 40) * k->size != offset)
			hak_die(call, p, HAK_ERR_INTERIOR);
		*room = k->size;
		return HAK_HARDENED ? hak_guard_asked(p, u, k, call) : k->size;
	}
	if (word == HAK_RUN_HEAD) {
		const hak_slab_t *r = hak_slab_of(u);
		if (r->base != p)
			hak_die(call, p, HAK_ERR_INTERIOR);
		*room = (size_t)r->len << HAK_UNIT_SHIFT;
		asked = r->asked;
	} else if (word || !(*room = hak_whale_size(p, &asked))) {
		hak_free_bad(p, call);
	}
	return HAK_HARDENED ? asked : *room;
}

HAK_EXPORT size_t hak_usable_size(const void *p)
{
	size_t room;
	return p ? hak_block_size(p, "malloc_usable_size", &room) : 0;
}

HAK_EXPORT void *hak_realloc(void *p, size_t n)
{
	size_t want = hak_guard_room(n), size, room;
	void *q;

	if (!p)
		return hak_hot_malloc(n);
	if (n == 0) {
		hak_hot_free(p);
		return NULL;
	}
	size = hak_block_size(p, "realloc", &room);
	if (room <= HAK_CLASS_MAX) { /* a class, or the run of a large alignment */
		if (want <= room && (want >= room / 2 || room <= 64))
			return hak_guard_resize_any(p, n);
	} else if (want > HAK_CLASS_MAX && want <= PTRDIFF_MAX - HAK_SUPER) {
		uint32_t u = hak_unit_of(p);
		if (HAK_HARDENED)
			hak_guard_check_for("realloc", p);
		if (hak_word(u) != HAK_RUN_HEAD) { /* a whale */
			if (want <= room && want >= room / 2)
				return hak_guard_resize_any(p, n);
			if ((q = hak_whale_resize(p, want)))
				return hak_guard_open_any(q, n);
		} else {
			if (want <= HAK_RUN_MAX && hak_large_resize(u, (uint32_t)((want + HAK_UNIT - 1) >> HAK_UNIT_SHIFT)))
				return hak_guard_open_any(p, n);
			if ((q = hak_large_to_whale(p, u, want)))
				return hak_guard_open_any(q, n);
		}
	}
	if (HAK_HARDENED)
		hak_guard_check_for("realloc", p);
	if (!(q = hak_hot_malloc(n)))
		return n <= size ? hak_guard_resize_any(p, n) : NULL; /* no block is too large to stay as it is */
	memcpy(q, p, n < size ? n : size);
	hak_hot_free(p);
	return q;
}

/* align: a power of two (the callers check). */
static void *hak_aligned(size_t align, size_t n)
{
	size_t room = hak_guard_room(n);
	bool zero;

	if (align <= 16 && (room > 8 || align <= 8))
		return hak_hot_malloc(n);
	hak_boot_init();
	if (align <= HAK_UNIT && room <= HAK_CLASS_MAX) {
		/* Slabs begin at a unit, so the blocks of every class that is a multiple of the alignment are aligned. */
		for (uint32_t c = hak_class_of(room > align ? room : align); c < HAK_CLASSES; c++)
			if ((hak_class[c].size & (align - 1)) == 0)
				return hak_hot_malloc_for(hak_class[c].size, n);
	}
	return hak_guard_open_any(hak_large_alloc(room, align, &zero), n);
}

HAK_EXPORT void *hak_aligned_alloc(size_t align, size_t n)
{
	if (align == 0 || (align & (align - 1))) {
		errno = EINVAL;
		return NULL;
	}
	return hak_aligned(align, n);
}

/* Sites: accepted, and without an effect until there are rules for them. */
HAK_EXPORT void *hak_alloc_at(size_t n, uint64_t site)
{
	(void)site;
	return hak_hot_malloc(n);
}

HAK_EXPORT void hak_free_at(void *p, uint64_t site)
{
	(void)site;
	hak_hot_free(p);
}

/* Gives back everything that can be: the calling thread's stacks, every inbox, empty slabs, free OS pages in others,
 * free runs, kept whales, and stacks of heaps without a thread.  Returns the bytes. */
HAK_EXPORT HAK_COLD size_t hak_trim(void)
{
	hak_heap_t *self;
	size_t sum = 0;
	uint64_t purged = hak_page_purged();
	int saved = errno;

	hak_boot_init();
	self = hak_self->id ? hak_self : NULL;
	if (self) {
		hak_claim_own(self); /* sorts its stacks out, if others have its slabs */
		hak_unclaim(self);
		hak_heap_post_all(self);
	}
	for (uint32_t id = HAK_OWNER_SHARED; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		hak_batch_t *stray = NULL;
		if (!h)
			continue;
		if (h == self)
			hak_claim_own(h);
		else
			hak_claim(h);
		if (hak_load(&h->inbox) != HAK_CLOSED)
			stray = hak_heap_drain_locked(h, h == self, self, NULL);
		if (h == self)
			hak_heap_flush_all_locked(h);
		sum += hak_heap_purge_locked(h);
		hak_unclaim(h);
		hak_batch_reroute(self, stray);
	}
	hak_lock(&hak_page.lock);
	for (uint32_t c = 0; c < HAK_CLASSES; c++)
		for (hak_slab_t *s = hak_page.orphan[c].head; s; s = s->next)
			sum += hak_slab_purge(s);
	hak_unlock(&hak_page.lock);
	hak_page_purge(UINT64_MAX, true);
	sum += (size_t)(hak_page_purged() - purged); /* what left while slabs were released counts too */
	sum += hak_whale_purge(UINT64_MAX);
	hak_lock(&hak_heaps.lock);
	for (hak_heap_t *h = hak_heaps.free; h; h = h->next_free)
		hak_heap_purge_stacks(h); /* not counted: nobody knows how much of it was touched */
	hak_unlock(&hak_heaps.lock);
	errno = saved;
	return sum;
}

/* ================================================= learning (ACE) ============================================== */

/* A thread wakes at the end of each window, reads what the heaps have put into their rings and what the counters have
 * gained, and asks each policy.  It allocates nothing, and holds its lock only while it thinks.  The paths that hand out
 * blocks never wait for it: they read targets. */

static const struct {
	const char *name, *unit, *measure, *sentence;
	uint32_t windows;
} hak_policy[] = {
#define HAK_POLICY_ROW(name, unit, of, windows, measure, sentence) {#name, unit, measure, sentence, windows},
	HAK_POLICIES(HAK_POLICY_ROW)
};

enum { HAK_ACE_ABSTAINS, HAK_ACE_CONTENT, HAK_ACE_WANTS }; /* nothing happened; well as it is; more */
typedef struct hak_verdict {
	int says;
	uint64_t measure;  /* in this window; lower is better */
	uint64_t want;     /* the target that it wants */
	uint64_t evidence; /* refills, batches or bytes that it comes from */
	const char *why;
} hak_verdict_t;

static const char *const hak_from_names[HAK_FROMS] = {
	"refills found nothing", "refills from the inbox", "refills from bitmaps", "refills of untouched blocks"};

static HAK_COLD uint64_t hak_ace_rate(uint64_t n, uint64_t of) { return of ? n * 1000000 / of : 0; }

/* Twice as much as often as needed, but not beyond `most`. */
static HAK_COLD uint64_t hak_ace_doubled(uint64_t target, uint64_t need, uint64_t most)
{
	uint64_t want = target;
	while (want && want < need)
		want *= 2;
	return want > most ? most : want;
}

static HAK_COLD const char *hak_ace_source(const hak_ace_class_t *w) /* where most blocks came from */
{
	int best = HAK_FROM_NOTHING;
	for (int from = 0; from < HAK_FROMS; from++)
		if (w->from[from] > w->from[best])
			best = from;
	return hak_from_names[best];
}

/* The policies, as their sentences in HAK_POLICIES say.  Lock: ACE. */
static HAK_COLD hak_verdict_t hak_ace_judge_batch(uint32_t c, uint64_t target)
{
	const hak_ace_class_t *w = &hak_ace.class[c];
	uint64_t allocs = hak_ace.window.allocs[c];
	uint32_t most = hak_min32(HAK_BATCH_MOST, hak_min32(HAK_ACE_BATCH_BYTES / hak_class[c].size, w->capacity / 2));
	hak_verdict_t v = {.evidence = w->refills, .why = hak_ace_source(w)};

	if (w->refills < HAK_ACE_BUSY || !allocs)
		return v;
	v.measure = hak_ace_rate(w->refills + w->flushes, allocs);
	v.want = hak_ace_doubled(target, target + 1, most);
	v.says = v.want > target && v.measure >= 10000 && w->flushes * 4 < w->refills ? HAK_ACE_WANTS : HAK_ACE_CONTENT;
	return v;
}

static HAK_COLD hak_verdict_t hak_ace_judge_capacity(uint32_t c, uint64_t target)
{
	const hak_ace_class_t *w = &hak_ace.class[c];
	uint64_t allocs = hak_ace.window.allocs[c], now = target > w->capacity ? target : w->capacity;
	hak_verdict_t v = {.evidence = w->flushes, .why = "stacks overflow, and are refilled"};

	if (w->refills < HAK_ACE_BUSY || !allocs || !w->capacity)
		return v;
	v.measure = hak_ace_rate(w->refills + w->flushes, allocs);
	v.want = hak_ace_doubled(now, now + 1, hak_class[c].most);
	v.says = v.want > now && v.measure >= 10000 && w->flushes * 4 >= w->refills ? HAK_ACE_WANTS : HAK_ACE_CONTENT;
	return v;
}

static HAK_COLD hak_verdict_t hak_ace_judge_remote(HAK_UNUSED uint32_t c, uint64_t target)
{
	const hak_ace_sums_t *w = &hak_ace.window;
	hak_verdict_t v = {.evidence = w->batches, .why = "batches leave for their bytes, half empty"};

	if (w->batches < HAK_ACE_BUSY)
		return v;
	v.measure = hak_ace_rate(w->batches, w->remote_frees);
	v.want = hak_ace_doubled(target, target + 1, hak_target_home(HAK_POLICY_remote, 0) * HAK_ACE_WIDE);
	v.says = v.want > target && w->remote_frees < w->batches * HAK_REMOTE_BLOCKS / 2 ? HAK_ACE_WANTS : HAK_ACE_CONTENT;
	return v;
}

/* Bytes that were taken anew and had been given back before, out of one pool of these. */
static HAK_COLD uint64_t hak_ace_regret(uint64_t *fresh, uint64_t *pool)
{
	uint64_t n = *fresh < *pool ? *fresh : *pool;
	*fresh -= n;
	*pool -= n;
	return n;
}

/* Memory that was given back, and of it `regret` bytes are wanted again among the `taken` of this window. */
static HAK_COLD hak_verdict_t hak_ace_judge_wanted(uint64_t regret, uint64_t taken, uint64_t want, uint64_t target, const char *why)
{
	hak_verdict_t v = {.evidence = regret, .want = want, .why = why};

	if (taken < HAK_SUPER / 4)
		return v;
	v.measure = hak_ace_rate(regret, taken);
	v.says = v.measure >= 50000 && want > target ? HAK_ACE_WANTS : HAK_ACE_CONTENT;
	return v;
}

static HAK_COLD hak_verdict_t hak_ace_judge_purge(HAK_UNUSED uint32_t c, uint64_t target)
{
	hak_ace_sums_t *w = &hak_ace.window;
	uint64_t taken = w->taken + w->whale_taken, most = hak_target_home(HAK_POLICY_purge, 0) * HAK_ACE_WIDE;
	uint64_t need = target + (hak_os_now() - hak_ace.aged_at) + 2 * (uint64_t)hak_option.ace_ms;
	uint64_t regret = hak_ace_regret(&w->fresh, &hak_ace.pool[HAK_POLICY_purge]) + hak_ace_regret(&w->whale_fresh, &hak_ace.pool[HAK_POLICY_purge]);

	/* A longer delay that is still too short brings nothing. */
	return hak_ace_judge_wanted(regret, taken, need > most ? 0 : hak_ace_doubled(target, need, most), target,
	                            "bytes went for their age and are wanted again");
}

static HAK_COLD hak_verdict_t hak_ace_judge_retain(HAK_UNUSED uint32_t c, uint64_t target)
{
	hak_ace_sums_t *w = &hak_ace.window;
	uint64_t regret = hak_ace_regret(&w->fresh, &hak_ace.pool[HAK_POLICY_retain]);

	return hak_ace_judge_wanted(regret, w->taken, hak_ace_doubled(target, target + regret,
	                            hak_target_home(HAK_POLICY_retain, 0) * HAK_ACE_WIDE), target,
	                            "bytes were too much to keep and are wanted again");
}

static HAK_COLD hak_verdict_t hak_ace_judge_bigcache(HAK_UNUSED uint32_t c, uint64_t target)
{
	hak_ace_sums_t *w = &hak_ace.window;
	uint64_t regret = hak_ace_regret(&w->whale_fresh, &hak_ace.pool[HAK_POLICY_bigcache]);

	return hak_ace_judge_wanted(regret, w->whale_taken, hak_ace_doubled(target, target + regret,
	                            hak_target_home(HAK_POLICY_bigcache, 0) * HAK_ACE_WIDE), target,
	                            "bytes of whales were too much to keep and are wanted again");
}

static hak_verdict_t (*const hak_ace_judges[])(uint32_t c, uint64_t target) = {
#define HAK_POLICY_JUDGE(name, unit, of, windows, measure, sentence) [HAK_POLICY_##name] = hak_ace_judge_##name,
	HAK_POLICIES(HAK_POLICY_JUDGE)
};
/* What went for its age is asked for first: the rest of what is taken anew is what was too much. */
static const int hak_ace_order[] = {HAK_POLICY_batch, HAK_POLICY_capacity, HAK_POLICY_remote, HAK_POLICY_purge,
	HAK_POLICY_retain, HAK_POLICY_bigcache};
_Static_assert(sizeof hak_ace_order / sizeof *hak_ace_order == HAK_POLICY_COUNT, "each policy is asked");

static HAK_COLD void hak_ace_note_locked(int policy, uint32_t c, const char *did, uint64_t to, uint64_t after, hak_verdict_t v)
{
	const hak_learner_t *l = &hak_ace.learner[policy][c];
	hak_ace.log[hak_ace.decided++ % HAK_ACE_LOG] = (hak_decision_t){.ms = hak_os_now() - hak_boot.start,
		.policy = hak_policy[policy].name, .did = did, .size = hak_policy_is_of_class[policy] ? hak_class[c].size : 0,
		.windows = l->left ? l->busy : l->same ? l->same : l->quiet, .old = hak_target_read(policy, c), .new = to,
		.before = l->before, .after = after, .evidence = v.evidence, .unit = hak_policy[policy].unit, .why = v.why};
}

/* A change: on trial from here on, or in shadow only said. */
static HAK_COLD void hak_ace_change_locked(int policy, uint32_t c, uint64_t to, hak_verdict_t v)
{
	hak_learner_t *l = &hak_ace.learner[policy][c];
	bool shadow = hak_option.ace == 1;

	l->before = l->same ? l->sum / l->same : l->recent;
	hak_ace_note_locked(policy, c, shadow ? "shadow" : "applied", to, 0, v);
	hak_ace.changes++;
	l->old = hak_target_read(policy, c);
	l->after = l->same = l->quiet = l->busy = 0;
	if (shadow) { /* said once, and not again in every window */
		l->silent = l->patience = hak_min32(l->patience ? l->patience * 2 : HAK_ACE_PATIENCE, HAK_ACE_PATIENCE_MOST);
		return;
	}
	l->left = HAK_ACE_TRIAL_MOST;
	l->settled = policy == HAK_POLICY_batch || policy == HAK_POLICY_capacity || policy == HAK_POLICY_remote;
	hak_ace.pool[policy] = 0; /* what was given back before says nothing of it */
	hak_target_publish(policy, c, to);
}

/* A change on trial.  More must have made the measure better, less must not have made it worse. */
static HAK_COLD void hak_ace_try_locked(int policy, uint32_t c, hak_verdict_t v)
{
	hak_learner_t *l = &hak_ace.learner[policy][c];
	uint64_t target = hak_target_read(policy, c), after;
	bool good;

	if (!l->settled) { /* a wave may go on for some windows, and has its memory already */
		l->settled = v.says == HAK_ACE_ABSTAINS || l->left < HAK_ACE_TRIAL_MOST * 3 / 4;
		l->left--;
		return;
	}
	if (v.says != HAK_ACE_ABSTAINS) {
		l->after += v.measure;
		l->busy++;
	}
	if (l->left > 1 && l->busy < HAK_ACE_TRIAL) {
		l->left--;
		return;
	}
	after = l->busy ? l->after / l->busy : 0;
	good = !l->busy || (target > l->old ? after * 20 <= l->before * 19 : after * 10 <= l->before * 11 + 1000);
	v.why = !l->busy ? "nothing went on" : good ? "its measure bears it out" : target > l->old ? "its measure is no better"
	      : "its measure is worse";
	hak_ace_note_locked(policy, c, good ? "kept" : "undone", good ? target : l->old, after, v);
	if (!good) { /* remembered, longer each time */
		hak_target_publish(policy, c, l->old);
		hak_ace.undone++;
		l->silent = l->patience = hak_min32(l->patience ? l->patience * 2 : HAK_ACE_PATIENCE, HAK_ACE_PATIENCE_MOST);
	}
	l->left = l->busy = 0;
}

/* Half of what was learned, or where it began. */
static HAK_COLD uint64_t hak_ace_less(int policy, uint32_t c, uint64_t target)
{
	uint64_t home = hak_target_home(policy, c), least = policy == HAK_POLICY_capacity ? hak_class[c].first : home;
	return target / 2 > least ? target / 2 : home;
}

static HAK_COLD void hak_ace_learn_locked(int policy, uint32_t c)
{
	hak_learner_t *l = &hak_ace.learner[policy][c];
	uint64_t target = hak_target_read(policy, c);
	hak_verdict_t v = hak_ace_judges[policy](c, target);

	if (l->left) {
		hak_ace_try_locked(policy, c, v);
		return;
	}
	if (v.says != HAK_ACE_ABSTAINS)
		l->recent = v.measure;
	if (l->silent) {
		l->silent--;
		return;
	}
	if (v.says == HAK_ACE_WANTS) {
		l->sum = (l->same ? l->sum : 0) + v.measure;
		l->quiet = 0;
		if (++l->same >= hak_policy[policy].windows)
			hak_ace_change_locked(policy, c, v.want, v);
		return;
	}
	if (v.says == HAK_ACE_CONTENT)
		l->same = 0;
	if (target > hak_target_home(policy, c) && !l->same && ++l->quiet >= HAK_ACE_QUIET) {
		v.why = "no case for it of late";
		hak_ace_change_locked(policy, c, hak_ace_less(policy, c, target), v);
	}
}

/* The counters as they stand.  Threads go on: what is read a moment too late counts in the next window. */
static HAK_COLD void hak_ace_collect(hak_ace_sums_t *s)
{
	memset(s, 0, sizeof *s);
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++) {
		const hak_heap_t *h = hak_heap_by_id(id);
		if (!h)
			continue;
		for (uint32_t c = 0; c < HAK_CLASSES; c++)
			s->allocs[c] += (hak_load(&h->v[c]) >> 16) + hak_load(&h->bin[c].folded);
		s->remote_frees += hak_load(&h->count.remote_frees);
		s->batches += hak_load(&h->count.batches_posted) + hak_load(&h->count.batches_claimed)
		            + hak_load(&h->count.batches_rerouted) + hak_load(&h->count.batches_orphaned);
		s->dropped += h->ring ? hak_ring_dropped(h->ring) : 0;
	}
	hak_lock_uncounted(&hak_page.lock);
	s->taken = hak_page.taken_units << HAK_UNIT_SHIFT;
	s->fresh = hak_page.fresh_units << HAK_UNIT_SHIFT;
	s->aged = hak_page.aged_units << HAK_UNIT_SHIFT;
	s->over = (hak_page.purged_units - hak_page.aged_units) << HAK_UNIT_SHIFT;
	hak_unlock(&hak_page.lock);
	hak_lock_uncounted(&hak_whales.lock);
	s->whale_taken = hak_whales.alloc_bytes;
	s->whale_fresh = hak_whales.fresh_bytes;
	s->whale_aged = hak_whales.aged_bytes;
	s->whale_over = hak_whales.over_bytes;
	hak_unlock(&hak_whales.lock);
}

/* Reads the rings, those of a whole window or what stood in them before.  Returns how many events there were. */
static HAK_COLD uint64_t hak_ace_drain_locked(bool window)
{
	uint64_t sum = 0;
	hak_event_t e;

	memset(hak_ace.class, 0, sizeof hak_ace.class);
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		uint32_t n = 0;
		if (!h || !h->ring)
			continue;
		for (; n < HAK_RING && hak_ring_get(h->ring, &e); n++) { /* no more than it holds: its owner may be faster */
			hak_ace_class_t *w = &hak_ace.class[e.class];
			w->refills += e.refills;
			w->flushes += e.flushes;
			w->from[e.from] += e.refills;
			if (e.capacity && (!w->capacity || e.capacity < w->capacity))
				w->capacity = e.capacity;
		}
		if (window)
			hak_ring_pace(h->ring, n, n == HAK_RING);
		sum += n;
	}
	return sum;
}

/* Given back in this window, or of late; half of what nobody wants again is forgotten in about 44 windows. */
static HAK_COLD void hak_ace_pool(uint64_t *pool, uint64_t bytes) { *pool += bytes - *pool / 64; }

static HAK_COLD void hak_ace_window_locked(void)
{
	static hak_ace_sums_t now; /* too large for a small stack */
	uint64_t events = hak_ace_drain_locked(true), *gain = (uint64_t *)&hak_ace.window;
	const uint64_t *at = (const uint64_t *)&now, *was = (const uint64_t *)&hak_ace.last;

	hak_ace_collect(&now);
	for (size_t i = 0; i < sizeof now / sizeof *gain; i++)
		gain[i] = at[i] - was[i];
	hak_ace.last = now;
	hak_ace.events += events;
	hak_ace_pool(&hak_ace.pool[HAK_POLICY_purge], hak_ace.window.aged + hak_ace.window.whale_aged);
	hak_ace_pool(&hak_ace.pool[HAK_POLICY_retain], hak_ace.window.over);
	hak_ace_pool(&hak_ace.pool[HAK_POLICY_bigcache], hak_ace.window.whale_over);
	if (hak_ace.window.aged || hak_ace.window.whale_aged)
		hak_ace.aged_at = hak_os_now();
	if (hak_ace.window.dropped * HAK_ACE_DROPS > events) {
		hak_ace.ignored++;
		return;
	}
	hak_ace.windows++;
	for (size_t i = 0; i < HAK_POLICY_COUNT; i++)
		for (uint32_t c = 0; c < hak_policy_ends(hak_ace_order[i]); c++)
			hak_ace_learn_locked(hak_ace_order[i], c);
}

static _Noreturn HAK_COLD void *hak_ace_thread(HAK_UNUSED void *argument)
{
	struct timespec window = {hak_option.ace_ms / 1000, hak_option.ace_ms % 1000 * 1000000};

	pthread_setname_np(pthread_self(), "hakmem-ace");
	hak_lock(&hak_ace.lock);
	hak_ace_drain_locked(false);
	hak_ace_collect(&hak_ace.last);
	hak_unlock(&hak_ace.lock);
	for (;;) {
		nanosleep(&window, NULL);
		hak_lock(&hak_ace.lock);
		hak_ace_window_locked();
		hak_unlock(&hak_ace.lock);
	}
}

/* Makes the thread, which takes no signal and which nobody joins.  By the library's constructor, and in fork's child. */
static HAK_COLD void hak_ace_start(void)
{
	sigset_t all, before;
	pthread_attr_t attributes;
	pthread_t thread;
	int error;

	if (!hak_option.ace || hak_ace.refused)
		return;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* it inherits that */
	if (!(error = pthread_attr_init(&attributes))) {
		pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
		pthread_attr_setstacksize(&attributes, HAK_ACE_STACK);
		error = pthread_create(&thread, &attributes, hak_ace_thread, NULL); /* allocates */
		if (error == EINVAL) { /* a program with so much thread-local data that it needs a larger stack */
			pthread_attr_destroy(&attributes);
			pthread_attr_init(&attributes);
			pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
			error = pthread_create(&thread, &attributes, hak_ace_thread, NULL);
		}
		pthread_attr_destroy(&attributes);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!error)
		return;
	hak_lock(&hak_ace.lock);
	hak_ace.refused = true;
	hak_ace.log[hak_ace.decided++ % HAK_ACE_LOG] = (hak_decision_t){.ms = hak_os_now() - hak_boot.start, .policy = "ace",
		.did = "refused", .evidence = (uint64_t)error, .unit = "errno", .why = "the system gave no thread: ACE stays off"};
	hak_unlock(&hak_ace.lock);
}

/* The user has set an option from which targets come: what was learned beside it is void.  Lock: ACE. */
static HAK_COLD void hak_ace_forget_locked(void)
{
	static const int options[] = {HAK_POLICY_retain, HAK_POLICY_bigcache, HAK_POLICY_purge};
	for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
		hak_ace.learner[options[i]][0] = (hak_learner_t){0};
		hak_target_publish(options[i], 0, hak_target_home(options[i], 0));
	}
}

static HAK_COLD void hak_ace_set_option(int64_t *place, int64_t value)
{
	hak_lock(&hak_ace.lock);
	hak_store(place, value);
	hak_ace_forget_locked();
	hak_unlock(&hak_ace.lock);
}

/* ================================================ introspection ABI ============================================ */

/* Records: for each field kind, name, unit, views, help.  Python reads the layouts from hak_about().  Kinds: Q uint64,
 * q int64, I uint32, z const char *.  Views: those of hakmem.report() that show the field; none named: all that show
 * the record. */
#define HAK_KIND_Q uint64_t
#define HAK_KIND_q int64_t
#define HAK_KIND_I uint32_t
#define HAK_KIND_z const char *

#define HAK_CLASS_FIELDS(X)                                                                               \
	X(I, index, "", "", "number of the class")                                                            \
	X(z, tier, "", "", "its tier")                                                                        \
	X(Q, size, "bytes", "", "size of a block")                                                            \
	X(Q, slab_bytes, "bytes", "classes", "size of a slab")                                                \
	X(Q, blocks_per_slab, "blocks", "classes", "blocks in a slab")                                        \
	X(Q, max_cached, "blocks", "classes", "most blocks in a thread's stack; 0: its tier is switched off") \
	X(Q, allocs, "blocks", "classes refills", "blocks handed out, ever")                                  \
	X(Q, frees, "blocks", "classes frees", "blocks taken back, ever")                                     \
	X(Q, misses, "blocks", "refills", "of the blocks handed out, those from the slow path")               \
	X(Q, filled_blocks, "blocks", "refills", "blocks that slow paths put into stacks")                    \
	X(Q, stack_frees, "blocks", "frees", "blocks freed into the thread's own stack (tls_sll)")            \
	X(Q, slab_frees, "blocks", "frees", "blocks freed into a slab past the stacks (ss_local)")            \
	X(Q, remote_frees, "blocks", "frees", "blocks put into batches for their owner (ss_remote)")          \
	X(Q, flushed_blocks, "blocks", "frees", "blocks that slow paths took out of stacks")                  \
	X(Q, live_blocks, "blocks", "classes", "blocks that callers hold")                                    \
	X(Q, cached_blocks, "blocks", "classes", "blocks in stacks")                                          \
	X(Q, transit_blocks, "blocks", "frees", "blocks in outgoing batches and inboxes")                     \
	X(Q, used_blocks, "blocks", "pools", "blocks out of their slabs: live, cached and in transit")        \
	X(Q, free_blocks, "blocks", "pools", "free blocks in slabs")                                          \
	X(Q, slabs, "slabs", "classes pools", "slabs, orphans among them")                                    \
	X(Q, orphan_slabs, "slabs", "pools", "slabs of dead threads that nobody has taken over")

#define HAK_TIER_FIELDS(X)                                                                           \
	X(z, name, "", "", "the tier")                                                                   \
	X(Q, min_size, "bytes", "summary", "smallest request")                                           \
	X(Q, max_size, "bytes", "summary", "largest request")                                            \
	X(Q, classes, "classes", "summary", "classes in it; 0: blocks are cut to measure")               \
	X(Q, enabled, "", "summary", "1: threads cache its blocks")                                      \
	X(Q, allocs, "blocks", "summary", "blocks handed out, ever")                                     \
	X(Q, frees, "blocks", "summary", "blocks taken back, ever")                                      \
	X(Q, misses, "blocks", "refills", "of the blocks handed out, those from the slow path")          \
	X(Q, live_blocks, "blocks", "summary", "blocks that callers hold")                               \
	X(Q, live_bytes, "bytes", "summary pools", "their bytes, rounded up to their class")             \
	X(Q, cached_bytes, "bytes", "summary pools", "blocks in stacks")                                 \
	X(Q, transit_bytes, "bytes", "pools", "blocks in outgoing batches and inboxes")                  \
	X(Q, peak_used_bytes, "bytes", "pools", "most bytes of live, cached and transit blocks at once") \
	X(Q, alloc_bytes, "bytes", "pools", "bytes of blocks handed out, ever")                          \
	X(Q, freed_bytes, "bytes", "pools", "bytes of blocks taken back, ever")

#define HAK_HEAP_FIELDS(X)                                                                         \
	X(I, heap, "", "", "number of the heap")                                                       \
	X(I, thread, "", "", "its thread's id for the system; 0: it is shared by threads without one") \
	X(Q, allocs, "blocks", "", "blocks handed out, ever, also to threads before this one")         \
	X(Q, misses, "blocks", "", "of these, those from the slow path")                               \
	X(Q, used_bytes, "bytes", "", "blocks out of its slabs: live, cached and in transit")          \
	X(Q, cached_bytes, "bytes", "", "blocks in its stacks")                                        \
	X(Q, inbox_bytes, "bytes", "", "blocks that other threads have sent back to it")               \
	X(Q, slabs, "slabs", "", "slabs that it owns")                                                 \
	X(Q, slab_bytes, "bytes", "", "size of these")                                                 \
	X(Q, remote_frees, "blocks", "", "blocks of other heaps that it has freed")                    \
	X(Q, refills, "refills", "", "stacks found empty and filled in one go")                        \
	X(Q, flushes, "flushes", "", "stacks found full and emptied by half")                          \
	X(Q, claims, "acquisitions", "", "acquisitions of its claim")

#define HAK_LOCK_FIELDS(X)                                                  \
	X(z, name, "", "", "the lock")                                          \
	X(Q, taken, "acquisitions", "", "acquisitions")                         \
	X(Q, contended, "acquisitions", "", "of these, those that had to wait") \
	X(z, guards, "", "", "what it guards")

#define HAK_SEGMENT_FIELDS(X)                                                                                 \
	X(Q, address, "address", "", "where it begins")                                                           \
	X(Q, total_size, "bytes", "", "its size")                                                                 \
	X(z, state, "", "", "slab, orphan (slab without a thread), run (a large block), whale, kept whale, free") \
	X(z, tier, "", "", "tier of its blocks; free: none")                                                      \
	X(Q, block_size, "bytes", "", "size of a block; 0: free")                                                 \
	X(Q, blocks, "blocks", "", "blocks that it has room for")                                                 \
	X(Q, used_blocks, "blocks", "", "of these, those out of it: live, cached and in transit")                 \
	X(I, heap, "", "", "the heap that owns it; 0: none")                                                      \
	X(Q, dirty_bytes, "bytes", "", "free: bytes with memory behind them; others: total_size")

#define HAK_OWNER_FIELDS(X)                                     \
	X(Q, base, "address", "", "start of the block")             \
	X(Q, size, "bytes", "", "its usable size")                  \
	X(I, class, "", "", "its class; 4294967295: none")          \
	X(I, heap, "", "", "the heap that owns it; 0: no thread's") \
	X(z, tier, "", "", "its tier")                              \
	X(z, state, "", "", "live (or in another thread's stack), cached in this thread's, or free")

#define HAK_OPTION_FIELDS(X)                                                               \
	X(z, name, "", "", "name, as set() takes it")                                          \
	X(z, env, "", "", "environment variable that sets it")                                 \
	X(z, type, "", "", "bool, int, bytes or mode (one of the words that stand for its unit)")   \
	X(z, unit, "", "", "unit")                                                             \
	X(z, when, "", "", "start: only in the environment; any: also while the program runs") \
	X(z, help, "", "", "what it does")                                                     \
	X(z, use, "", "", "when a user would want it")                                         \
	X(q, initial, "", "", "default")                                                       \
	X(q, least, "", "", "smallest value")                                                  \
	X(q, most, "", "", "largest value")

#define HAK_POLICY_FIELDS(X)                                                                   \
	X(z, name, "", "", "the policy")                                                           \
	X(Q, target, "", "", "what it publishes now; of each class: targets that are not as they began") \
	X(Q, initial, "", "", "where that began; of each class: 0")                                \
	X(z, unit, "", "", "unit of both")                                                         \
	X(I, windows, "windows", "", "windows of one opinion before it acts")                      \
	X(z, measure, "", "", "by which a change is judged; lower is better")                      \
	X(z, rule, "", "", "what it does")

#define HAK_DECISION_FIELDS(X)                                                                  \
	X(Q, ms, "ms", "", "when, since the first call")                                            \
	X(z, policy, "", "", "the policy")                                                          \
	X(I, size, "bytes", "", "blocks of the class; 0: of no class")                              \
	X(Q, old, "", "", "the target before")                                                      \
	X(Q, new, "", "", "the target after; kept: the same")                                       \
	X(z, unit, "", "", "unit of both")                                                          \
	X(z, did, "", "", "applied (from now on on trial), shadow (not done), kept, undone, refused (no thread)") \
	X(Q, before, "per million", "", "the policy's measure before the change")                   \
	X(Q, after, "per million", "", "the same since; 0: not known yet")                          \
	X(I, windows, "windows", "", "windows that it comes from")                                  \
	X(Q, evidence, "", "", "refills, flushes, batches or bytes of the last of these windows")   \
	X(z, why, "", "", "what these were, or what became of the change")

#define HAK_DECLARE_FIELD(kind, name, unit, view, help) HAK_KIND_##kind name;
typedef struct hak_class_row { HAK_CLASS_FIELDS(HAK_DECLARE_FIELD) } hak_class_row_t;
typedef struct hak_tier_row { HAK_TIER_FIELDS(HAK_DECLARE_FIELD) } hak_tier_row_t;
typedef struct hak_heap_row { HAK_HEAP_FIELDS(HAK_DECLARE_FIELD) } hak_heap_row_t;
typedef struct hak_lock_row { HAK_LOCK_FIELDS(HAK_DECLARE_FIELD) } hak_lock_row_t;
typedef struct hak_segment { HAK_SEGMENT_FIELDS(HAK_DECLARE_FIELD) } hak_segment_t;
typedef struct hak_owner { HAK_OWNER_FIELDS(HAK_DECLARE_FIELD) } hak_owner_t;
typedef struct hak_policy_row { HAK_POLICY_FIELDS(HAK_DECLARE_FIELD) } hak_policy_row_t;
typedef struct hak_stats { HAK_GLOBAL_STATS(HAK_DECLARE_COUNTER) HAK_HEAP_COUNTERS(HAK_DECLARE_COUNTER) } hak_stats_t;

typedef struct hak_field { const char *name, *kind, *unit, *view, *help; uint32_t offset, size; } hak_field_t;
typedef struct hak_record { const char *name; const hak_field_t *fields; uint32_t count, size; } hak_record_t;
typedef struct hak_about {
	uint32_t abi, size;
	const char *version, *variant;
	const hak_record_t *records;
	uint32_t count, reserved;
} hak_about_t;

#define HAK_FIELD(type, kind, name, unit, view, help) \
	{#name, #kind, unit, view, help, offsetof(type, name), sizeof(((type *)0)->name)},
#define HAK_CLASS_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_class_row_t, kind, name, unit, view, help)
#define HAK_TIER_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_tier_row_t, kind, name, unit, view, help)
#define HAK_HEAP_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_heap_row_t, kind, name, unit, view, help)
#define HAK_LOCK_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_lock_row_t, kind, name, unit, view, help)
#define HAK_SEGMENT_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_segment_t, kind, name, unit, view, help)
#define HAK_OWNER_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_owner_t, kind, name, unit, view, help)
#define HAK_OPTION_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_option_row_t, kind, name, unit, view, help)
#define HAK_POLICY_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_policy_row_t, kind, name, unit, view, help)
#define HAK_DECISION_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_decision_t, kind, name, unit, view, help)
#define HAK_STAT_FIELD(name, unit, view, help) HAK_FIELD(hak_stats_t, Q, name, unit, view, help)
static const hak_field_t hak_class_fields[] = {HAK_CLASS_FIELDS(HAK_CLASS_FIELD)};
static const hak_field_t hak_tier_fields[] = {HAK_TIER_FIELDS(HAK_TIER_FIELD)};
static const hak_field_t hak_heap_fields[] = {HAK_HEAP_FIELDS(HAK_HEAP_FIELD)};
static const hak_field_t hak_lock_fields[] = {HAK_LOCK_FIELDS(HAK_LOCK_FIELD)};
static const hak_field_t hak_segment_fields[] = {HAK_SEGMENT_FIELDS(HAK_SEGMENT_FIELD)};
static const hak_field_t hak_owner_fields[] = {HAK_OWNER_FIELDS(HAK_OWNER_FIELD)};
static const hak_field_t hak_option_fields[] = {HAK_OPTION_FIELDS(HAK_OPTION_FIELD)};
static const hak_field_t hak_policy_fields[] = {HAK_POLICY_FIELDS(HAK_POLICY_FIELD)};
static const hak_field_t hak_decision_fields[] = {HAK_DECISION_FIELDS(HAK_DECISION_FIELD)};
static const hak_field_t hak_stat_fields[] = {HAK_GLOBAL_STATS(HAK_STAT_FIELD) HAK_HEAP_COUNTERS(HAK_STAT_FIELD)};
#define HAK_RECORD(name, fields, type) {name, fields, sizeof fields / sizeof *fields, sizeof(type)}
static const hak_record_t hak_records[] = {
	HAK_RECORD("stats", hak_stat_fields, hak_stats_t),
	HAK_RECORD("class", hak_class_fields, hak_class_row_t),
	HAK_RECORD("tier", hak_tier_fields, hak_tier_row_t),
	HAK_RECORD("heap", hak_heap_fields, hak_heap_row_t),
	HAK_RECORD("lock", hak_lock_fields, hak_lock_row_t),
	HAK_RECORD("segment", hak_segment_fields, hak_segment_t),
	HAK_RECORD("option", hak_option_fields, hak_option_row_t),
	HAK_RECORD("owner", hak_owner_fields, hak_owner_t),
	HAK_RECORD("policy", hak_policy_fields, hak_policy_row_t),
	HAK_RECORD("decision", hak_decision_fields, hak_decision_t),
};
static const hak_about_t hak_about_this = {
	HAK_ABI, sizeof(hak_about_t), HAK_VERSION, HAK_VARIANT, hak_records, sizeof hak_records / sizeof *hak_records, 0};

HAK_EXPORT const hak_about_t *hak_about(void) { return &hak_about_this; }

static const struct {
	const char *name, *guards;
	hak_lock_t *lock;
} hak_shared_locks[] = {
#define HAK_LOCK_ROW(name, place, guards) {#name, guards, &(place)},
	HAK_SHARED_LOCKS(HAK_LOCK_ROW)
};
enum { HAK_LOCK_COUNT = sizeof hak_shared_locks / sizeof *hak_shared_locks };

HAK_EXPORT const char *hak_error_name(int code)
{
	return code >= 0 && code < HAK_ERR_COUNT ? hak_error_names[code] : "UNKNOWN";
}

HAK_EXPORT const char *hak_error_text(int code)
{
	return code >= 0 && code < HAK_ERR_COUNT ? hak_error_texts[code] : "unknown error";
}

/* Sums over all heaps and the orphans, one row for each class, and the counters of heaps into *sum.  What is received
 * is read before what is sent, so that a block in transit is never counted as less than none; live blocks are the
 * rest.  Exact when no thread allocates; while some do, blocks that moved between two reads are off. */
static HAK_COLD void hak_stats_collect(hak_class_row_t row[HAK_CLASSES], hak_heap_counters_t *sum)
{
	uint32_t end;
	uint64_t received[HAK_CLASSES] = {0};

	hak_boot_init();
	end = HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made);
	memset(sum, 0, sizeof *sum);
	hak_lock_uncounted(&hak_page.lock);
	hak_gauge_tell_orphans_locked();
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		const hak_class_t *k = &hak_class[c];
		row[c] = (hak_class_row_t){.index = c, .tier = hak_tier[k->tier].name, .size = k->size,
			.slab_bytes = (uint64_t)hak_slab_units(k) << HAK_UNIT_SHIFT, .blocks_per_slab = k->blocks,
			.max_cached = k->cached && hak_option.enable_tls ? k->most : 0,
			.used_blocks = hak_page.orphan_used[c], .slabs = hak_page.orphans[c], .orphan_slabs = hak_page.orphans[c]};
		received[c] = hak_page.orphan_received[c];
		row[c].slab_frees = hak_page.orphan_claimed[c];
	}
	hak_unlock(&hak_page.lock);
	for (uint32_t id = HAK_OWNER_SHARED; id < end; id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		if (!h)
			continue;
		hak_lock_uncounted(&h->claim); /* its slow paths stand still; its fast path goes on */
		for (int t = 0; t < HAK_TIER_whale; t++)
			hak_gauge_tell_locked(h, t);
		for (uint32_t c = 0; c < HAK_CLASSES; c++) {
			const hak_bin_t *b = &h->bin[c];
			uint64_t v = hak_load(&h->v[c]), allocs = (v >> 16) + b->folded;
			uint64_t level = (v & 0xFFFF) - h->floor[c];
			row[c].allocs += allocs;
			row[c].misses += b->misses;
			row[c].cached_blocks += level;
			row[c].used_blocks += b->used;
			row[c].slabs += b->slabs;
			row[c].filled_blocks += b->filled;
			row[c].flushed_blocks += b->flushed;
			received[c] += b->received;
			/* What went into the stack came from slow paths or from frees; what went out, to callers or to slow paths. */
			row[c].stack_frees += level + (allocs - b->misses) + b->flushed - b->filled;
			row[c].slab_frees += hak_load(&b->direct) + b->claimed;
		}
		hak_unclaim(h);
	}
	for (uint32_t id = HAK_OWNER_SHARED; id < end; id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		for (uint32_t c = 0; h && c < HAK_CLASSES; c++) {
			uint64_t sent = hak_load(&h->bin[c].sent);
			row[c].remote_frees += sent;
			row[c].transit_blocks += sent + hak_load(&h->bin[c].strayed);
		}
#define HAK_SUM_COUNTER(name, unit, view, help) sum->name += h ? hak_load(&h->count.name) : 0;
		HAK_HEAP_COUNTERS(HAK_SUM_COUNTER)
	}
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		row[c].transit_blocks -= received[c];
		row[c].frees = row[c].stack_frees + row[c].slab_frees + row[c].remote_frees;
		uint64_t out = row[c].cached_blocks + row[c].transit_blocks;
		row[c].live_blocks = row[c].used_blocks > out ? row[c].used_blocks - out : 0;
		row[c].free_blocks = row[c].slabs * hak_class[c].blocks - row[c].used_blocks;
	}
}

/* A row for each shared lock, the shared heap's claim among them, and one for all the other claims. */
enum { HAK_LOCK_ROWS = HAK_LOCK_COUNT + 2 };
static HAK_COLD void hak_lock_rows(hak_lock_row_t row[HAK_LOCK_ROWS])
{
	hak_lock_row_t *claims = &row[HAK_LOCK_ROWS - 1];

	for (int i = 0; i < HAK_LOCK_COUNT; i++) {
		const hak_lock_t *l = hak_shared_locks[i].lock;
		row[i] = (hak_lock_row_t){.name = hak_shared_locks[i].name, .guards = hak_shared_locks[i].guards,
			.taken = hak_load(&l->taken), .contended = hak_load(&l->contended)};
	}
	row[HAK_LOCK_COUNT] = (hak_lock_row_t){.name = "shared_heap", .guards = "slabs for threads without a heap (P0: all)"};
	*claims = (hak_lock_row_t){.name = "claims", .guards = "slabs of one heap each: all claims together"};
	for (uint32_t id = HAK_OWNER_SHARED; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++) {
		const hak_heap_t *h = hak_heap_by_id(id);
		hak_lock_row_t *to = id == HAK_OWNER_SHARED ? &row[HAK_LOCK_COUNT] : claims;
		to->taken += h ? hak_load(&h->claim.taken) : 0;
		to->contended += h ? hak_load(&h->claim.contended) : 0;
	}
}

HAK_EXPORT HAK_COLD int hak_lock_table(hak_lock_row_t *rows, size_t row_size, int most)
{
	hak_lock_row_t row[HAK_LOCK_ROWS];

	if (most > 0) {
		if (row_size != sizeof *rows)
			return -HAK_ERR_SIZE;
		hak_lock_rows(row);
		memcpy(rows, row, (size_t)hak_min32((uint32_t)most, HAK_LOCK_ROWS) * sizeof *rows);
	}
	return HAK_LOCK_ROWS;
}

/* The heaps that have a thread, and the shared one.  Returns how many there are, which may be more than fit. */
HAK_EXPORT HAK_COLD int hak_heap_table(hak_heap_row_t *rows, size_t row_size, int most)
{
	int n = 0;

	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_boot_init();
	for (uint32_t id = HAK_OWNER_SHARED; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		if (!h)
			continue;
		hak_lock_uncounted(&h->claim);
		if ((id != HAK_OWNER_SHARED && !hak_load(&h->thread)) || n++ >= most) {
			hak_unclaim(h);
			continue;
		}
		hak_heap_row_t *r = &rows[n - 1];
		if (h == hak_self) /* it may be in a child that fork's handlers know nothing of */
			hak_store(&h->thread, (uint32_t)syscall(SYS_gettid));
		*r = (hak_heap_row_t){.heap = id, .thread = hak_load(&h->thread), .used_bytes = hak_heap_used_locked(h),
			.inbox_bytes = hak_load(&h->inbox_bytes), .remote_frees = hak_load(&h->count.remote_frees),
			.refills = h->count.refills, .flushes = h->count.flushes, .claims = h->claim.taken};
		for (uint32_t c = 0; c < HAK_CLASSES; c++) {
			const hak_bin_t *b = &h->bin[c];
			r->allocs += (hak_load(&h->v[c]) >> 16) + b->folded;
			r->misses += b->misses;
			r->cached_bytes += (uint64_t)hak_heap_level(h, c) * hak_class[c].size;
			r->slabs += b->slabs;
			r->slab_bytes += (b->slabs * hak_slab_units(&hak_class[c])) << HAK_UNIT_SHIFT;
		}
		hak_unclaim(h);
	}
	return n;
}

typedef struct hak_segments { /* a table being filled */
	hak_segment_t *row;
	int most, n;
} hak_segments_t;

static HAK_COLD void hak_segment_add(hak_segments_t *t, hak_segment_t row)
{
	if (t->n++ < t->most)
		t->row[t->n - 1] = row;
}

static HAK_COLD void hak_segment_add_slabs(hak_segments_t *t, const hak_slab_t *s, uint32_t heap)
{
	for (; s; s = s->next) {
		const hak_class_t *k = &hak_class[s->class];
		uint64_t size = (uint64_t)s->len << HAK_UNIT_SHIFT;
		hak_segment_add(t, (hak_segment_t){.address = (uint64_t)(uintptr_t)s->base, .total_size = size,
			.state = heap ? "slab" : "orphan", .tier = hak_tier[k->tier].name, .block_size = k->size, .blocks = k->blocks,
			.used_blocks = s->used, .heap = heap, .dirty_bytes = size});
	}
}

static HAK_COLD void hak_segment_add_heap(hak_segments_t *t, hak_heap_t *h)
{
	hak_lock_uncounted(&h->claim);
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		const hak_bin_t *b = &h->bin[c];
		if (b->current) {
			hak_slab_t alone = *b->current; /* it stands in no list: its link is stale */
			alone.next = NULL;
			hak_segment_add_slabs(t, &alone, h->id);
		}
		hak_segment_add_slabs(t, b->partial.head, h->id);
		hak_segment_add_slabs(t, b->full.head, h->id);
	}
	hak_unclaim(h);
}

/* Runs of a range, used ones and free ones; none is being purged, as the caller holds that lock, too.  Slabs are
 * stepped over by the length that their class has. */
static HAK_COLD void hak_segment_add_runs_locked(hak_segments_t *t, const hak_range_t *range)
{
	for (uint32_t u = range->first, len; u < range->first + range->top; u += len) {
		uint32_t word = hak_load(&hak_unit[u]);
		const hak_slab_t *s = hak_slab_of(u);
		if (hak_word_owner(word) >= HAK_OWNER_ORPHAN) {
			len = hak_slab_units(&hak_class[hak_word_class(word)]);
			continue;
		}
		len = s->len;
		hak_segment_t row = {.address = (uint64_t)(uintptr_t)s->base, .total_size = (uint64_t)len << HAK_UNIT_SHIFT,
			.state = "free", .tier = "", .dirty_bytes = (uint64_t)hak_dirty_count(u, len) << HAK_UNIT_SHIFT};
		if (word == HAK_RUN_HEAD) {
			row.state = "run";
			row.tier = hak_tier[HAK_TIER_whale].name;
			row.block_size = row.total_size;
			row.blocks = row.used_blocks = 1;
		}
		hak_segment_add(t, row);
	}
}

static HAK_COLD void hak_segment_add_whales(hak_segments_t *t, const hak_whale_t *w, bool kept)
{
	for (; w; w = w->next)
		hak_segment_add(t, (hak_segment_t){.address = (uint64_t)(uintptr_t)w->base, .total_size = w->len,
			.state = kept ? "kept whale" : "whale", .tier = hak_tier[HAK_TIER_whale].name, .block_size = w->len,
			.blocks = 1, .used_blocks = kept ? 0 : 1, .dirty_bytes = w->len});
}

/* All memory that is committed, piece by piece, in no order.  Returns how many pieces there are, which may be more than
 * fit.  Exact when no thread allocates; while some do, a piece that changes hands may be missed or stand there twice. */
HAK_EXPORT HAK_COLD int hak_segment_table(hak_segment_t *rows, size_t row_size, int most)
{
	hak_segments_t t = {rows, most, 0};

	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_boot_init();
	for (uint32_t id = HAK_OWNER_SHARED; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++)
		if (hak_heap_by_id(id))
			hak_segment_add_heap(&t, hak_heap_by_id(id));
	hak_lock_uncounted(&hak_page.purging);
	hak_lock_uncounted(&hak_page.lock);
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		hak_segment_add_slabs(&t, hak_page.orphan[c].head, 0);
		hak_segment_add_slabs(&t, hak_page.orphan_full[c].head, 0);
	}
	for (uint32_t i = 0; i < hak_page.ranges; i++)
		hak_segment_add_runs_locked(&t, &hak_page.range[i]);
	hak_unlock(&hak_page.lock);
	hak_unlock(&hak_page.purging);
	hak_lock_uncounted(&hak_whales.lock);
	for (uint32_t i = 0; i < HAK_WHALE_BUCKETS; i++)
		hak_segment_add_whales(&t, hak_whales.bucket[i], false);
	hak_segment_add_whales(&t, hak_whales.kept, true);
	hak_unlock(&hak_whales.lock);
	return t.n;
}

/* The peaks of statistics begin anew, at what is in use now. */
HAK_EXPORT HAK_COLD void hak_reset_peaks(void)
{
	hak_class_row_t row[HAK_CLASSES];
	hak_heap_counters_t counters;

	hak_stats_collect(row, &counters); /* the heaps tell the gauges */
	for (int t = 0; t < HAK_TIER_COUNT; t++)
		hak_store(&hak_gauge.peak[t], hak_load(&hak_gauge.used[t]));
	hak_store(&hak_gauge.peak_all, hak_gauge_sum());
	hak_lock(&hak_page.lock);
	hak_page.peak_shown = 0;
	hak_page_peak_locked();
	hak_unlock(&hak_page.lock);
}

HAK_EXPORT HAK_COLD int hak_class_table(hak_class_row_t *rows, size_t row_size, int most)
{
	hak_class_row_t row[HAK_CLASSES];
	hak_heap_counters_t counters;

	if (most > 0) {
		if (row_size != sizeof *rows)
			return -HAK_ERR_SIZE;
		hak_stats_collect(row, &counters);
		memcpy(rows, row, (size_t)hak_min32((uint32_t)most, HAK_CLASSES) * sizeof *rows);
	}
	return HAK_CLASSES;
}

static HAK_COLD void hak_ace_fill(hak_stats_t *s)
{
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++) {
		const hak_heap_t *h = hak_heap_by_id(id);
		s->ace_drops += h && h->ring ? hak_ring_dropped(h->ring) : 0;
	}
	hak_lock_uncounted(&hak_ace.lock);
	s->ace_events = hak_ace.events;
	s->ace_windows = hak_ace.windows;
	s->ace_windows_ignored = hak_ace.ignored;
	s->ace_changes = hak_ace.changes;
	s->ace_undone = hak_ace.undone;
	hak_unlock(&hak_ace.lock);
}

/* The policies, and what they publish now. */
HAK_EXPORT HAK_COLD int hak_ace_policies(hak_policy_row_t *rows, size_t row_size, int most)
{
	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_boot_init();
	for (int i = 0; i < HAK_POLICY_COUNT && i < most; i++) {
		bool each = hak_policy_is_of_class[i];
		rows[i] = (hak_policy_row_t){.name = hak_policy[i].name, .unit = each ? "classes" : hak_policy[i].unit,
			.target = each ? 0 : hak_target_read(i, 0), .initial = each ? 0 : hak_target_home(i, 0),
			.windows = hak_policy[i].windows, .measure = hak_policy[i].measure, .rule = hak_policy[i].sentence};
		for (uint32_t c = 0; each && c < HAK_CLASSES; c++)
			rows[i].target += hak_target_read(i, c) != hak_target_home(i, c);
	}
	return HAK_POLICY_COUNT;
}

/* The last decisions, oldest first. */
HAK_EXPORT HAK_COLD int hak_ace_log(hak_decision_t *rows, size_t row_size, int most)
{
	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_lock_uncounted(&hak_ace.lock);
	uint64_t n = hak_ace.decided < HAK_ACE_LOG ? hak_ace.decided : HAK_ACE_LOG;
	for (uint64_t i = 0; i < n && (int)i < most; i++)
		rows[i] = hak_ace.log[(hak_ace.decided - n + i) % HAK_ACE_LOG];
	hak_unlock(&hak_ace.lock);
	return (int)n;
}

/* A snapshot, and the rows of the classes that it is made from. */
static HAK_COLD void hak_stats_fill(hak_stats_t *s, hak_class_row_t row[HAK_CLASSES])
{
	hak_heap_counters_t sum;
	hak_lock_row_t lock[HAK_LOCK_ROWS];

	memset(s, 0, sizeof *s);
	hak_stats_collect(row, &sum);
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		const hak_class_row_t *r = &row[c];
		s->allocs += r->allocs;
		s->frees += r->frees;
		s->cache_misses += r->misses;
		s->live_blocks += r->live_blocks;
		s->live_bytes += r->live_blocks * r->size;
		s->alloc_bytes += r->allocs * r->size;
		s->freed_bytes += r->frees * r->size;
		s->cached_bytes += r->cached_blocks * r->size;
		s->transit_bytes += r->transit_blocks * r->size;
		s->slab_free_bytes += r->free_blocks * r->size;
		s->slab_tail_bytes += r->slabs * (r->slab_bytes - r->blocks_per_slab * r->size);
		s->slabs += r->slabs - r->orphan_slabs;
		s->orphan_slabs += r->orphan_slabs;
	}
	s->cache_hits = s->allocs - s->cache_misses;
#define HAK_COPY_COUNTER(name, unit, view, help) s->name = sum.name;
	HAK_HEAP_COUNTERS(HAK_COPY_COUNTER)

	hak_lock_uncounted(&hak_whales.lock);
	s->whale_blocks = hak_whales.live;
	s->whale_bytes = hak_whales.bytes;
	s->whale_hits = hak_whales.hits;
	s->allocs += hak_whales.allocs;
	s->frees += hak_whales.frees;
	s->alloc_bytes += hak_whales.alloc_bytes;
	s->freed_bytes += hak_whales.freed_bytes;
	s->kept_whale_bytes = hak_whales.kept_bytes;
	hak_unlock(&hak_whales.lock);
	hak_lock_uncounted(&hak_page.lock);
	s->large_blocks = hak_page.large_blocks;
	s->large_bytes = hak_page.large_units << HAK_UNIT_SHIFT;
	s->allocs += hak_page.large_allocs;
	s->frees += hak_page.large_frees;
	s->alloc_bytes += hak_page.large_units_alloced << HAK_UNIT_SHIFT;
	s->freed_bytes += hak_page.large_units_freed << HAK_UNIT_SHIFT;
	s->free_dirty_bytes = (hak_page.dirty_units + hak_page.purging_dirty) << HAK_UNIT_SHIFT;
	s->free_clean_bytes = (hak_page.clean_units + hak_page.purging_clean) << HAK_UNIT_SHIFT;
	s->in_use_bytes = (hak_page.used_units << HAK_UNIT_SHIFT) + s->whale_bytes;
	s->peak_in_use_bytes = hak_page.peak_shown > s->in_use_bytes ? hak_page.peak_shown : s->in_use_bytes;
	s->superslabs = hak_page.supers;
	s->purges = hak_page.purges;
	s->purged_bytes = hak_page.purged_units << HAK_UNIT_SHIFT;
	for (uint32_t i = 0; i < hak_page.ranges; i++)
		s->address_space_bytes += hak_page.range[i].mapped;
	hak_unlock(&hak_page.lock);
	s->live_blocks += s->large_blocks + s->whale_blocks;
	s->live_bytes += s->large_bytes + s->whale_bytes;
	s->peak_used_bytes = hak_load(&hak_gauge.peak_all);
	hak_lock_uncounted(&hak_heaps.lock);
	s->heaps = hak_heaps.running + (hak_heap_by_id(HAK_OWNER_SHARED) ? 1 : 0);
	s->heaps_made = hak_heaps.made;
	s->threads_exited = hak_heaps.exited;
	hak_unlock(&hak_heaps.lock);
	hak_lock_uncounted(&hak_meta.lock);
	s->metadata_bytes = hak_meta.bytes;
	hak_unlock(&hak_meta.lock);
	hak_ace_fill(s);
	/* Not the sum of its parts: that the two are the same is a law that the tests check. */
	s->committed_bytes = s->superslabs * HAK_SUPER + s->whale_bytes + s->kept_whale_bytes + s->metadata_bytes;
	hak_lock_rows(lock);
	for (int i = 0; i < HAK_LOCK_ROWS - 1; i++) { /* the last is the claims */
		s->shared_locks += lock[i].taken;
		s->shared_locks_contended += lock[i].contended;
	}
	s->claims = lock[HAK_LOCK_ROWS - 1].taken;
	s->claims_contended = lock[HAK_LOCK_ROWS - 1].contended;
}

HAK_EXPORT HAK_COLD int hak_stats_snapshot(hak_stats_t *s, size_t size)
{
	hak_class_row_t row[HAK_CLASSES];
	if (size != sizeof *s)
		return HAK_ERR_SIZE;
	hak_stats_fill(s, row);
	return HAK_ERR_OK;
}

HAK_EXPORT HAK_COLD uint64_t hak_stat(const char *name)
{
	hak_stats_t s;
	hak_stats_snapshot(&s, sizeof s);
	for (size_t i = 0; i < sizeof hak_stat_fields / sizeof *hak_stat_fields; i++)
		if (strcmp(hak_stat_fields[i].name, name) == 0)
			return *(const uint64_t *)(const void *)((const char *)&s + hak_stat_fields[i].offset);
	return UINT64_MAX;
}

HAK_EXPORT HAK_COLD int hak_tier_table(hak_tier_row_t *rows, size_t row_size, int most)
{
	hak_class_row_t row[HAK_CLASSES];
	hak_stats_t s;

	if (most <= 0)
		return HAK_TIER_COUNT;
	if (row_size != sizeof *rows || most < HAK_TIER_COUNT)
		return -HAK_ERR_SIZE;
	hak_stats_fill(&s, row);
	for (uint32_t t = 0; t < HAK_TIER_COUNT; t++)
		rows[t] = (hak_tier_row_t){.name = hak_tier[t].name, .min_size = t ? hak_tier[t].least : 0,
			.max_size = t == HAK_TIER_whale ? PTRDIFF_MAX : hak_tier[t].most, .classes = hak_tier[t].classes};
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		hak_tier_row_t *t = &rows[hak_class[c].tier];
		t->enabled = row[c].max_cached != 0;
		t->allocs += row[c].allocs;
		t->frees += row[c].frees;
		t->misses += row[c].misses;
		t->live_blocks += row[c].live_blocks;
		t->live_bytes += row[c].live_blocks * row[c].size;
		t->alloc_bytes += row[c].allocs * row[c].size;
		t->freed_bytes += row[c].frees * row[c].size;
		t->cached_bytes += row[c].cached_blocks * row[c].size;
		t->transit_bytes += row[c].transit_blocks * row[c].size;
	}
	hak_tier_row_t *w = &rows[HAK_TIER_whale];
	w->live_blocks = s.large_blocks + s.whale_blocks;
	w->live_bytes = s.large_bytes + s.whale_bytes;
	hak_lock_uncounted(&hak_page.lock);
	w->allocs = hak_page.large_allocs;
	w->frees = hak_page.large_frees;
	w->alloc_bytes = hak_page.large_units_alloced << HAK_UNIT_SHIFT;
	w->freed_bytes = hak_page.large_units_freed << HAK_UNIT_SHIFT;
	hak_unlock(&hak_page.lock);
	hak_lock_uncounted(&hak_whales.lock);
	w->allocs += hak_whales.allocs;
	w->frees += hak_whales.frees;
	w->alloc_bytes += hak_whales.alloc_bytes;
	w->freed_bytes += hak_whales.freed_bytes;
	hak_unlock(&hak_whales.lock);
	w->misses = w->allocs;
	for (uint32_t t = 0; t < HAK_TIER_COUNT; t++)
		rows[t].peak_used_bytes = hak_load(&hak_gauge.peak[t]);
	return HAK_TIER_COUNT;
}

HAK_EXPORT HAK_COLD const hak_option_row_t *hak_option_table(int *count)
{
	hak_boot_init(); /* it writes the env names */
	*count = HAK_OPTION_COUNT;
	return hak_option_rows;
}

static HAK_COLD int hak_option_index(const char *name)
{
	for (int i = 0; i < HAK_OPTION_COUNT; i++)
		if (strcmp(hak_option_rows[i].name, name) == 0)
			return i;
	return -1;
}

HAK_EXPORT HAK_COLD int hak_option_get(const char *name, int64_t *out)
{
	int i = hak_option_index(name);
	hak_boot_init();
	if (i < 0)
		return HAK_ERR_NO_OPTION;
	*out = hak_load(hak_option_places[i]);
	return HAK_ERR_OK;
}

/* The value that the environment variable would give the option: numbers with suffixes, words for switches. */
HAK_EXPORT HAK_COLD int hak_option_parse(const char *name, const char *text, int64_t *out)
{
	int i = hak_option_index(name);
	if (i < 0)
		return HAK_ERR_NO_OPTION;
	if (!hak_option_parse_text(&hak_option_rows[i], text, out))
		return HAK_ERR_TEXT;
	return *out < hak_option_rows[i].least || *out > hak_option_rows[i].most ? HAK_ERR_RANGE : HAK_ERR_OK;
}

HAK_EXPORT HAK_COLD int hak_option_set(const char *name, int64_t value)
{
	int i = hak_option_index(name);
	hak_boot_init();
	if (i < 0)
		return HAK_ERR_NO_OPTION;
	if (value < hak_option_rows[i].least || value > hak_option_rows[i].most)
		return HAK_ERR_RANGE;
	if (hak_option_rows[i].when[0] == 's')
		return HAK_ERR_WHEN;
	hak_ace_set_option(hak_option_places[i], value);
	return HAK_ERR_OK;
}

/* What is at p, which may point anywhere. */
static HAK_COLD int hak_block_find(const void *p, hak_owner_t *out)
{
	uint32_t u, word, c, index;

	hak_boot_init();
	*out = (hak_owner_t){.class = UINT32_MAX, .tier = hak_tier[HAK_TIER_whale].name, .state = "live"};
again:
	u = hak_unit_of(p);
	word = hak_word(u);
	c = hak_word_class(word);
	if (hak_word_owner(word) >= HAK_OWNER_ORPHAN) {
		const hak_class_t *k = &hak_class[c];
		hak_heap_t *h = hak_word_owner(word) == HAK_OWNER_ORPHAN ? NULL : hak_heap_by_id(hak_word_owner(word));
		hak_lock_t *lock = h ? &h->claim : &hak_page.lock;
		hak_lock(lock);
		if (hak_word(u) != word) {
			hak_unlock(lock);
			goto again;
		}
		const hak_slab_t *s = hak_slab_head(u);
		index = (uint32_t)(((uint64_t)((const char *)p - s->base) * k->reciprocal) >> 40);
		bool never = index >= s->carved, isfree = never || ((s->map[index / 64] >> (index % 64)) & 1);
		out->base = (uint64_t)(uintptr_t)(s->base + (size_t)index * k->size);
		hak_unlock(lock);
		if (HAK_HARDENED) {
			bool start;
			isfree |= hak_note_state(hak_load(hak_note_of(p, u, k, &start))) != HAK_NOTE_LIVE;
		}
		out->size = k->size;
		out->class = c;
		out->heap = h ? h->id : 0;
		out->tier = hak_tier[k->tier].name;
		if (index >= k->blocks)
			return HAK_ERR_FOREIGN; /* the end of a slab, too short for a block */
		if (isfree)
			out->state = "free";
		else if (h && h == hak_self)
			for (uint32_t i = 0; i < hak_heap_level(h, c); i++)
				if ((uintptr_t)h->slot[h->floor[c] + 1 + i] == out->base)
					out->state = "cached";
		return HAK_ERR_OK;
	}
	if (hak_word_owner(word) == HAK_OWNER_RUN) {
		int found = HAK_ERR_FOREIGN;
		hak_lock(&hak_page.lock);
		while (hak_word(u) == HAK_RUN_BODY)
			u--;
		if (hak_word(u) == HAK_RUN_HEAD) {
			out->base = (uint64_t)(uintptr_t)hak_slab_of(u)->base;
			out->size = (uint64_t)hak_slab_of(u)->len << HAK_UNIT_SHIFT;
			found = HAK_ERR_OK;
		}
		hak_unlock(&hak_page.lock);
		return found;
	}
	char *base = NULL;
	out->size = hak_whale_around(p, &base);
	out->base = (uint64_t)(uintptr_t)base;
	if (out->size)
		return HAK_ERR_OK;
	return u < HAK_UNITS_MAX && hak_load_acquire(&hak_super[u / HAK_SUPER_UNITS]) ? HAK_ERR_ALREADY_FREE : HAK_ERR_FOREIGN;
}

static HAK_COLD int hak_block_check(const void *p, hak_owner_t *o)
{
	int error = hak_block_find(p, o);
	if (error)
		return error;
	if (o->state[0] != 'l')
		return HAK_ERR_ALREADY_FREE;
	if (o->base != (uint64_t)(uintptr_t)p)
		return HAK_ERR_INTERIOR;
	return HAK_HARDENED ? hak_guard_check(p) : HAK_ERR_OK;
}

/* 0, or HAK_ERR_FOREIGN for what is in no block. */
HAK_EXPORT HAK_COLD int hak_owner_of(const void *p, hak_owner_t *out, size_t size)
{
	if (size != sizeof *out)
		return HAK_ERR_SIZE;
	return hak_block_find(p, out) ? HAK_ERR_FOREIGN : HAK_ERR_OK;
}

/* The calls below return an error where the plain ones abort.  A block that another thread has freed may be taken for
 * a live one. */
HAK_EXPORT HAK_COLD int hak_free_checked(void *p)
{
	hak_owner_t o;
	int error = p ? hak_block_check(p, &o) : HAK_ERR_OK;
	if (!error)
		hak_hot_free(p);
	return error;
}

HAK_EXPORT HAK_COLD int hak_realloc_checked(void *p, size_t n, void **out)
{
	hak_owner_t o;
	int error = p ? hak_block_check(p, &o) : HAK_ERR_OK;
	if (!error) {
		*out = hak_realloc(p, n);
		if (!*out && (n || !p))
			error = HAK_ERR_NOMEM;
	}
	return error;
}

HAK_EXPORT HAK_COLD int hak_usable_size_checked(const void *p, size_t *out)
{
	hak_owner_t o;
	int error = p ? hak_block_check(p, &o) : HAK_ERR_OK;
	*out = p && !error ? hak_usable_size(p) : 0;
	return error;
}

/* ==================================================== lifecycle ================================================ */

/* fork: every lock is taken in the order of the file's opening comment, so that the child finds the lists whole. */
static HAK_COLD void hak_fork_each_claim(void (*act)(hak_lock_t *))
{
	for (uint32_t id = HAK_OWNER_SHARED; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		if (h)
			act(&h->claim);
	}
}

static HAK_COLD void hak_fork_each_shared(void (*act)(hak_lock_t *)) /* all but the first: claims come between */
{
	for (size_t i = 1; i < HAK_LOCK_COUNT; i++)
		act(hak_shared_locks[i].lock);
}

static HAK_COLD void hak_fork_take(hak_lock_t *l) { hak_lock(l); }
static HAK_COLD void hak_fork_drop(hak_lock_t *l) { hak_unlock(l); }
static HAK_COLD void hak_fork_renew(hak_lock_t *l) { hak_lock_renew(l); }

static HAK_COLD void hak_fork_prepare(void)
{
	/* What other threads have sent so far arrives; see hak_fork_forget. */
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++)
		hak_heap_drain(hak_heap_by_id(id), hak_self->id ? hak_self : NULL);
	hak_lock(&hak_heaps.lock);
	hak_fork_each_claim(hak_fork_take);
	hak_fork_each_shared(hak_fork_take);
	hak_store(&hak_fork_thread, &hak_thread);
}

static HAK_COLD void hak_fork_parent(void)
{
	hak_store(&hak_fork_thread, NULL);
	hak_fork_each_shared(hak_fork_drop);
	hak_fork_each_claim(hak_fork_drop);
	hak_unlock(&hak_heaps.lock);
}

/* The system copies a process page by page, while its other threads go on: what they write without a lock may have
 * been copied in part.  The child drops it: the other threads' stacks and outgoing batches, and what was put into an
 * inbox since fork-prepare.  Those blocks stay used for ever, as do the blocks that the threads held themselves. */
static HAK_COLD void hak_fork_forget(hak_heap_t *h)
{
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		/* As if the thread had taken all that stood there: so the counts say as well that it is used. */
		hak_store(&h->v[c], h->v[c] + ((uint64_t)hak_heap_level(h, c) << 16));
		hak_heap_stack_reset(h, c);
	}
	for (uint32_t i = 0; i < HAK_OUT_SLOTS; i++)
		h->out[i] = NULL;
	h->spare = NULL;
	h->spares = 0;
	h->lost = 0;
}

/* A child made without these handlers finds locks and lists as they are at that moment.  While no other thread is in a
 * slow path, that is whole, and the heaps of the threads it has not got are to it like those of idle threads: it helps
 * them, and in the end takes their slabs.  Else it may call exec and nothing more, which is what the C library
 * promises; no list could be trusted, so there is nothing to repair. */
static HAK_COLD void hak_fork_watch(void)
{
	uint32_t *page = hak_os_map(hak_boot.os_page, PROT_READ | PROT_WRITE);
	if (page && hak_os_advise(page, hak_boot.os_page, MADV_WIPEONFORK)) {
		hak_store(page, 1u);
		hak_fork_page = page;
	} else if (page) {
		hak_os_unmap(page, hak_boot.os_page);
	}
}

/* The threads of the other heaps do not exist here. */
static HAK_COLD void hak_fork_child(void)
{
	hak_heap_t *self = hak_self->id ? hak_self : NULL;

	hak_store(&hak_fork_thread, NULL);
	if (hak_fork_page)
		hak_store(hak_fork_page, 1u);
	if (self)
		hak_store(&self->thread, (uint32_t)syscall(SYS_gettid));
	hak_fork_each_shared(hak_fork_renew);
	hak_fork_each_claim(hak_fork_renew);
	hak_fork_renew(&hak_heaps.lock);
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_heaps.made; id++) {
		hak_heap_t *h = hak_heap[id];
		if (!h)
			continue;
		hak_store(&h->inbox_bytes, 0u);
		if (h->running)
			hak_store(&h->inbox, NULL);
		if (h->running && h != self)
			hak_fork_forget(h);
	}
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_heaps.made; id++) {
		hak_heap_t *h = hak_heap[id];
		if (h && h->running && h != self)
			hak_heap_retire(h);
	}
	hak_ace_start();
}

#ifdef HAK_PTHREAD_LOCKS
/* What P0 reads without the lock under which it is written; the stores are atomic. */
#define hak_hg_relaxed(object) VALGRIND_HG_DISABLE_CHECKING(&(object), sizeof(object))
static void hak_hg_declare(void)
{
	hak_heap_t *h = hak_heap_shared();

	hak_hg_relaxed(hak_option.purge_ms);    /* by whoever acts on it, while hak_option_set writes it */
	hak_hg_relaxed(hak_option.retain);
	hak_hg_relaxed(hak_target);             /* by whoever acts on them, while ACE or hak_option_set publishes */
	hak_hg_relaxed(hak_fork_thread);        /* hak_unlock, to know whether this thread is in fork */
	hak_hg_relaxed(hak_page.dirty_units);   /* hak_heap_tick_slow, to see whether a purge is worth while */
	hak_hg_relaxed(hak_whales.kept_bytes);
	hak_hg_relaxed(hak_whales.bytes);       /* hak_page_peak_locked, under another lock */
	hak_hg_relaxed(h->count);               /* hak_stats_collect */
	for (size_t i = 0; i < HAK_LOCK_COUNT; i++) { /* hak_lock_rows */
		hak_hg_relaxed(hak_shared_locks[i].lock->taken);
		hak_hg_relaxed(hak_shared_locks[i].lock->contended);
	}
	hak_hg_relaxed(h->claim.taken);
	hak_hg_relaxed(h->claim.contended);
}
#else
#define hak_hg_declare() ((void)0)
#endif

__attribute__((constructor)) static void hak_boot_constructor(void)
{
	hak_boot_init();
	hak_hg_declare();
	hak_fork_watch();
	pthread_atfork(hak_fork_prepare, hak_fork_parent, hak_fork_child); /* may allocate */
	hak_ace_start();
}

/* =============================================== libc and C++ overrides ======================================== */

#ifndef HAK_NO_OVERRIDE

#include <malloc.h>

#if defined(__has_attribute) && !defined(__clang__)
#define HAK_ALIAS(of) __attribute__((alias(#of), visibility("default"), copy(of)))
#else
#define HAK_ALIAS(of) __attribute__((alias(#of), visibility("default")))
#endif

HAK_EXPORT void *malloc(size_t n) { return hak_hot_malloc(n); }
HAK_EXPORT void free(void *p) { hak_hot_free(p); }
void cfree(void *p) HAK_ALIAS(hak_free);
void *calloc(size_t count, size_t size) HAK_ALIAS(hak_calloc);
void *realloc(void *p, size_t n) HAK_ALIAS(hak_realloc);
size_t malloc_usable_size(void *p) HAK_ALIAS(hak_usable_size);

HAK_EXPORT void *reallocarray(void *p, size_t count, size_t size)
{
	size_t n;
	if (__builtin_mul_overflow(count, size, &n)) {
		errno = ENOMEM;
		return NULL;
	}
	return hak_realloc(p, n);
}

HAK_EXPORT int posix_memalign(void **out, size_t align, size_t n)
{
	int saved = errno;
	void *p;
	if (align < sizeof(void *) || (align & (align - 1)))
		return EINVAL;
	p = hak_aligned(align, n);
	errno = saved;
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

HAK_EXPORT void *aligned_alloc(size_t align, size_t n) { return hak_aligned_alloc(align, n); }

/* As glibc's: an alignment that is not a power of two is rounded up to one. */
HAK_EXPORT void *memalign(size_t align, size_t n)
{
	size_t power = 16;
	while (power < align && power <= PTRDIFF_MAX / 2)
		power *= 2;
	return hak_aligned(power, n);
}

HAK_EXPORT void *valloc(size_t n)
{
	hak_boot_init();
	return hak_aligned(hak_boot.os_page, n);
}

HAK_EXPORT void *pvalloc(size_t n)
{
	hak_boot_init();
	if (n > PTRDIFF_MAX - hak_boot.os_page) {
		errno = ENOMEM;
		return NULL;
	}
	return hak_aligned(hak_boot.os_page, hak_round_up(n ? n : 1, hak_boot.os_page));
}

HAK_EXPORT int malloc_trim(size_t pad)
{
	(void)pad;
	return hak_trim() != 0;
}

HAK_EXPORT int mallopt(int parameter, int value) /* glibc's parameters mean nothing here */
{
	(void)parameter;
	(void)value;
	return 1;
}

HAK_EXPORT struct mallinfo2 mallinfo2(void)
{
	hak_stats_t s;
	struct mallinfo2 m = {0};
	hak_stats_snapshot(&s, sizeof s);
	m.arena = s.committed_bytes - s.whale_bytes - s.kept_whale_bytes;
	m.ordblks = s.slabs + s.orphan_slabs;
	m.hblks = s.whale_blocks;
	m.hblkhd = s.whale_bytes;
	m.uordblks = s.live_bytes - s.whale_bytes;
	m.fordblks = m.arena - m.uordblks;
	m.keepcost = s.free_dirty_bytes;
	return m;
}

HAK_EXPORT struct mallinfo mallinfo(void)
{
	struct mallinfo2 m = mallinfo2();
	struct mallinfo small = {0};
	/* Its fields are ints: a large value stands at the largest int, not at its low bits. */
#define HAK_NARROW(field) small.field = m.field > INT_MAX ? INT_MAX : (int)m.field
	HAK_NARROW(arena);
	HAK_NARROW(ordblks);
	HAK_NARROW(hblks);
	HAK_NARROW(hblkhd);
	HAK_NARROW(uordblks);
	HAK_NARROW(fordblks);
	HAK_NARROW(keepcost);
	return small;
}

HAK_EXPORT void malloc_stats(void)
{
	hak_stats_t s;
	hak_stats_snapshot(&s, sizeof s);
	for (size_t i = 0; i < sizeof hak_stat_fields / sizeof *hak_stat_fields; i++)
		hak_sayf("hakmem: %-24s %14llu %s\n", hak_stat_fields[i].name,
		         *(const unsigned long long *)(const void *)((const char *)&s + hak_stat_fields[i].offset),
		         hak_stat_fields[i].unit);
}

HAK_EXPORT int malloc_info(int options, FILE *stream)
{
	hak_stats_t s;
	if (options != 0)
		return errno = EINVAL, -1;
	hak_stats_snapshot(&s, sizeof s);
	fputs("<malloc version=\"hakmem-" HAK_VERSION "\">\n", stream);
	for (size_t i = 0; i < sizeof hak_stat_fields / sizeof *hak_stat_fields; i++)
		fprintf(stream, "<stat name=\"%s\" unit=\"%s\" value=\"%llu\"/>\n", hak_stat_fields[i].name,
		        hak_stat_fields[i].unit,
		        *(const unsigned long long *)(const void *)((const char *)&s + hak_stat_fields[i].offset));
	fputs("</malloc>\n", stream);
	return 0;
}

/* C++.  The names are those of the Itanium ABI; what comes from libstdc++ is weak, so that C programs need none. */
typedef void (*hak_new_handler_t)(void);
extern hak_new_handler_t hak_cxx_get_new_handler(void) __asm__("_ZSt15get_new_handlerv") __attribute__((weak));
extern _Noreturn void hak_cxx_throw_bad_alloc(void) __asm__("_ZSt17__throw_bad_allocv") __attribute__((weak));

/* Out of memory: the program's new_handler may find some.  The forms that may not throw call it too. */
static HAK_COLD void *hak_cxx_new_slow(size_t n, size_t align, bool nothrow)
{
	for (;;) {
		void *p = align ? hak_aligned(align, n) : hak_hot_malloc(n);
		if (p)
			return p;
		hak_new_handler_t handler = hak_cxx_get_new_handler ? hak_cxx_get_new_handler() : NULL;
		if (handler)
			handler();
		else if (nothrow)
			return NULL;
		else if (hak_cxx_throw_bad_alloc)
			hak_cxx_throw_bad_alloc();
		else
			hak_die("operator new", NULL, HAK_ERR_NOMEM);
	}
}

HAK_INLINE void *hak_cxx_new(size_t n, bool nothrow)
{
	void *p = hak_hot_malloc(n);
	return hak_likely(p != NULL) ? p : hak_cxx_new_slow(n, 0, nothrow);
}

HAK_INLINE void *hak_cxx_new_aligned(size_t n, size_t align, bool nothrow)
{
	void *p = hak_aligned(align, n);
	return hak_likely(p != NULL) ? p : hak_cxx_new_slow(n, align, nothrow);
}

/* operator delete has been told that the block at p was made for n bytes. */
static HAK_NOINLINE void hak_cxx_check_size(const void *p, size_t n)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u);
	size_t asked;

	if (hak_word_owner(word) >= HAK_OWNER_ORPHAN)
		asked = hak_guard_asked(p, u, &hak_class[hak_word_class(word)], "operator delete");
	else if (!p || !hak_guard_large(p, u, &asked))
		return; /* free will tell */
	if (asked != n)
		hak_die("operator delete", p, HAK_ERR_DELETE_SIZE);
}

HAK_INLINE void hak_cxx_delete_sized(void *p, size_t n)
{
	if (HAK_HARDENED)
		hak_cxx_check_size(p, n);
	hak_hot_free(p);
}

#define HAK_CXX_NEW(symbol)                                     \
	HAK_EXPORT void *symbol(size_t n);                          \
	HAK_EXPORT void *symbol(size_t n) { return hak_cxx_new(n, false); }
#define HAK_CXX_NEW_NOTHROW(symbol)                             \
	HAK_EXPORT void *symbol(size_t n, const void *tag);         \
	HAK_EXPORT void *symbol(size_t n, const void *tag) { (void)tag; return hak_cxx_new(n, true); }
#define HAK_CXX_NEW_ALIGNED(symbol)                             \
	HAK_EXPORT void *symbol(size_t n, size_t align);            \
	HAK_EXPORT void *symbol(size_t n, size_t align)             \
	{ return hak_cxx_new_aligned(n, align, false); }
#define HAK_CXX_NEW_ALIGNED_NOTHROW(symbol)                     \
	HAK_EXPORT void *symbol(size_t n, size_t align, const void *tag); \
	HAK_EXPORT void *symbol(size_t n, size_t align, const void *tag) { (void)tag; return hak_cxx_new_aligned(n, align, true); }
#define HAK_CXX_DELETE(symbol, ...)                             \
	HAK_EXPORT void symbol(void *p __VA_ARGS__);                \
	HAK_EXPORT void symbol(void *p __VA_ARGS__) { hak_hot_free(p); }
#define HAK_CXX_DELETE_SIZED(symbol, ...)                       \
	HAK_EXPORT void symbol(void *p, size_t n __VA_ARGS__);      \
	HAK_EXPORT void symbol(void *p, HAK_UNUSED size_t n __VA_ARGS__) { hak_cxx_delete_sized(p, n); }

HAK_CXX_NEW(_Znwm)
HAK_CXX_NEW(_Znam)
HAK_CXX_NEW_NOTHROW(_ZnwmRKSt9nothrow_t)
HAK_CXX_NEW_NOTHROW(_ZnamRKSt9nothrow_t)
HAK_CXX_NEW_ALIGNED(_ZnwmSt11align_val_t)
HAK_CXX_NEW_ALIGNED(_ZnamSt11align_val_t)
HAK_CXX_NEW_ALIGNED_NOTHROW(_ZnwmSt11align_val_tRKSt9nothrow_t)
HAK_CXX_NEW_ALIGNED_NOTHROW(_ZnamSt11align_val_tRKSt9nothrow_t)
HAK_CXX_DELETE(_ZdlPv)
HAK_CXX_DELETE(_ZdaPv)
HAK_CXX_DELETE_SIZED(_ZdlPvm)
HAK_CXX_DELETE_SIZED(_ZdaPvm)
HAK_CXX_DELETE(_ZdlPvRKSt9nothrow_t, , HAK_UNUSED const void *tag)
HAK_CXX_DELETE(_ZdaPvRKSt9nothrow_t, , HAK_UNUSED const void *tag)
HAK_CXX_DELETE(_ZdlPvSt11align_val_t, , HAK_UNUSED size_t align)
HAK_CXX_DELETE(_ZdaPvSt11align_val_t, , HAK_UNUSED size_t align)
HAK_CXX_DELETE_SIZED(_ZdlPvmSt11align_val_t, , HAK_UNUSED size_t align)
HAK_CXX_DELETE_SIZED(_ZdaPvmSt11align_val_t, , HAK_UNUSED size_t align)
HAK_CXX_DELETE(_ZdlPvSt11align_val_tRKSt9nothrow_t, , HAK_UNUSED size_t align, HAK_UNUSED const void *tag)
HAK_CXX_DELETE(_ZdaPvSt11align_val_tRKSt9nothrow_t, , HAK_UNUSED size_t align, HAK_UNUSED const void *tag)

#endif /* HAK_NO_OVERRIDE */
