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
 *            page heap, in shards: runs of units in superslabs of 4 MiB; orphaned slabs by class
 *              |
 *              v
 *            reserved address range -- OS pages: commit, purge after a delay     whales: mappings of their own
 *
 * Terms.  Block: what the caller gets.  Slab: one or more units that hold blocks of one class.  Unit: 64 KiB.
 * Superslab: 64 units, aligned.  Run: consecutive units, free or one large block.  Heap: one thread's stacks and
 * slabs.  Class: a block size.  Tier: tiny, l2, l25, whale.  Claim: the lock of one heap's slabs.  Orphan: a slab
 * whose thread has died.  Shard: a part of the page heap with a lock of its own, to which superslabs belong.  Segment:
 * what a pointer can be looked up to, a slab, a large run or a whale.  Site: where a block is asked for, a number that
 * the caller gives or the address that malloc returns to.  Rule: what a user wants of a site's blocks.  Group: classes of
 * the same sizes with slabs of their own, for the blocks of sites with a rule.
 *
 * Invariants.
 *  1. Only the holder of a heap's claim changes that heap's slabs (bitmaps, lists).  The owner holds it in its slow
 *     paths; trim, fork and a poster that finds the inbox too full take it too.  A thread holds one claim at most
 *     (fork: all, in the order of their ids).  The unit words of a heap's slabs change under its claim; those of free
 *     units and orphans under the lock of their superslab's shard, which is another one only after all of the
 *     superslab was free under both shards' locks.
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
 * Order of locks: what other processes see, heaps list, claim, ACE, purge, page heap's shards by number, ranges, batch
 * pool, whales, BigCache, index, metadata, sites (the table of sites, then the shares of the table of their blocks).
 *
 * Sections: tables; compiler and platform; atomics and locks; types; state; OS; messages; options; size classes;
 * targets; metadata; gauges; rings; sites; index of segments; BigCache; shards; page heap; whales; slabs; owner look-up;
 * hardening; heaps; remote frees and orphans; adaptive sizing; refill and flush; thread start and end; large runs; slow
 * paths; HOT PATHS (start reading there); derived calls; learning (ACE); introspection; C's report; seen from another
 * process; lifecycle; libc and C++.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <linux/futex.h>
#include <linux/stat.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

/* ================================================================ tables ======================================= */

#define HAK_VERSION "0.1.0"
#define HAK_ABI 3u /* raised when a struct of the introspection section changes its meaning */

/* A tier is a row: smallest and largest block, classes to a doubling, least blocks in a slab, number of classes, most KiB
 * in a stack (but one block), and most KiB in all of its stacks in a heap (0: as many as there are).  Few of the large
 * ones: to take them from the page heap costs little beside using them, and what is kept of them cuts free memory up. */
#define HAK_TIERS(X)                     \
	X(tiny, 8, 1024, 8, 1, 33, 512, 0)   \
	X(l2, 1025, 32768, 4, 8, 20, 512, 0) \
	X(l25, 32769, 1048576, 4, 1, 20, 256, 1024)

/* name, type, unit, default, least, most, when it may change, help, and when a user would want it.  Read from
 * HAKMEM_<NAME> at the first call.  The number of a text is its length. */
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
	X(use_registry, int, "", 0, 0, 2, start, "how the checked calls find the slab of a pointer: 0 by its address, 1 by a hash registry, 2 by a scan", \
	  "1 where many blocks above 64 MiB are asked about; 2 to compare")                                  \
	X(purge_ms, int, "ms", 1000, 0, 3600000, any, "age at which free memory goes back to the system",    \
	  "smaller where RSS is paid for, larger where load comes in waves")                                 \
	X(retain, bytes, "bytes", 24ll << 20, 0, 1ll << 40, any, "free memory kept whatever is live; above it, as much as is in use", \
	  "0 in a tight cgroup, larger where a program frees nearly everything between two bursts")          \
	X(bigcache, bytes, "bytes", 1ll << 40, 0, 1ll << 40, any, "most bytes of freed blocks above 1 MiB kept whole; 0: none", \
	  "smaller where a program frees large blocks for good, 0 to compare; retain and purge_ms apply as well")             \
	X(huge_pages, bool, "", 0, 0, 1, start, "transparent huge pages in the range (they cost resident memory)", \
	  "1 for large tables that live long and are read at random")                                        \
	X(adaptive_sizing, bool, "", 1, 0, 1, any, "each thread's cache of a class grows and shrinks with what goes through it", \
	  "0 to compare, or where the capacities are to be those of cache_first")                            \
	X(adaptive_log, bool, "", 0, 0, 1, any, "a line on stderr for each such change",                     \
	  "1 to see why a program's caches hold what they hold")                                             \
	X(cache_first, int, "blocks", 0, 0, HAK_STACK_MAX, start, "capacity of a cache at first; 0: 64 blocks, at most 64 KiB", \
	  "larger where threads are few and bursts of one size long, smaller with thousands of threads; with adaptive_sizing=0 for good") \
	X(cache_limit, bytes, "bytes", 512ll << 20, 0, 1ll << 40, any, "capacity of all threads' caches together; above it a new one gets 16 blocks, at most 16 KiB", \
	  "smaller in a tight cgroup with many threads, larger where hundreds of threads are all busy")      \
	X(prewarm_tls, int, "", 0, 0, 2, any, "a new thread's caches of blocks up to 32 KiB are filled at its first call; 2: and touched", \
	  "1 or 2 where a thread's first requests must be quick, and it can make a first call before them")  \
	X(sites, bool, "", 0, 0, 1, start, "counts blocks by call site, the address that malloc returns to (each call pays)", \
	  "1 to see which code allocates what, and to find the site for a rule")                            \
	X(site_rules, text, "bytes", 0, 0, 65536, start, "rules for sites: 42:lifetime=long;lib.so+0x1a2b:retain=0;name:nocache", \
	  "where one site's blocks outlive those around them, or should not be kept once they are freed")   \
	X(ace, mode, "off|shadow|on", 0, 0, 2, start,                                                        \
	  "a thread learns batches, capacities and retention from refills; shadow: it only says what it would do (view `ace`)", \
	  "shadow to see what would suit a long-lived program, on if its `bench.py ace` or yours says that it helps") \
	X(ace_ms, int, "ms", 250, 10, 60000, start, "length of a window in which ACE counts before it judges", \
	  "smaller where load changes within a second; each window wakes its thread once")                   \
	X(hardened, int, "", HAK_HARDENED, HAK_HARDENED, 2 * HAK_HARDENED, start,                            \
	  "hardened library: 1 checks each pointer and each block's end, 2 also for use after free",         \
	  "1 in tests and where input is hostile, 2 to find a bug")                                          \
	X(shards, int, "shards", 1, 1, HAK_SHARDS_MAX, start, "parts of the page heap with a lock each at the start, rounded up to a power of two", \
	  "more where hundreds of threads start at once, and nothing is to be waited for at first")          \
	X(shard_threshold, int, "acquisitions", 1024, 0, 1000000000, any, "so many for each shard in a second that had to wait double the shards; 0: never", \
	  "0 to keep the number of shards, smaller where contention is known to come")                       \
	X(stats_page, int, "", 0, 0, 2, start, "statistics that other processes of the user can read (python -m hakmem top); 2: a thread answers them at once", \
	  "1 for a service that is to be looked at (`run` sets it), 2 if also while it sleeps")              \
	X(report_at_exit, text, "bytes", 0, 0, 1024, start, "a report when the process ends: stderr, or a file that it is appended to, as report.%p (%p: the pid)", \
	  "to see afterwards what a program that ends did with its memory")                                  \
	X(report_signal, mode, "off|HUP|USR1|USR2|QUIT|ALRM|WINCH|PWR", 0, 0, 7, start, "a signal on which the next slow path writes the same report, if the program has no use for it", \
	  "where nothing but kill is at hand, in a container say")

/* Counters that a heap keeps: name, unit, views, help.  Each is written under the heap's claim or by its owner alone
 * (never by two sides), and read by anybody.  The views are those of hakmem.report() that show it; the word rises
 * among them is no view, but says that the counter never falls (here and in the tables below). */
#define HAK_HEAP_COUNTERS(X)                                                                              \
	X(refills, "refills", "refills rises", "stacks found empty and filled in one go")                    \
	X(refill_inbox_blocks, "blocks", "refills rises", "blocks put into stacks from the inbox")           \
	X(refill_bitmap_blocks, "blocks", "refills rises", "blocks put into stacks from bitmaps of used slabs") \
	X(refill_carve_blocks, "blocks", "refills rises", "blocks put into stacks that were never used before") \
	X(flushes, "flushes", "frees rises", "stacks found full and emptied by half")                        \
	X(flush_blocks, "blocks", "frees rises", "blocks moved from stacks to bitmaps")                      \
	X(remote_frees, "blocks", "frees rises", "blocks freed by a thread that does not own them")          \
	X(batches_posted, "batches", "frees rises", "batches of remote frees put into an inbox")             \
	X(batches_claimed, "batches", "frees rises", "batches freed under the owner's claim, its inbox being full") \
	X(batches_rerouted, "batches", "frees rises", "batches whose owner had died before they arrived")    \
	X(batches_orphaned, "batches", "frees rises", "batches of blocks in orphaned slabs")                 \
	X(batches_drained, "batches", "frees refills rises", "batches taken out of the inbox")               \
	X(inboxes_helped, "inboxes", "frees threads rises", "inboxes of idle threads emptied by this one")   \
	X(slabs_adopted, "slabs", "refills threads rises", "slabs of dead threads taken over")               \
	X(slabs_new, "slabs", "refills rises", "slabs made of free units")                                   \
	X(slabs_released, "slabs", "frees rises", "empty slabs given back to the page heap")                 \
	X(cache_grows, "changes", "refills caches rises", "stack capacities doubled")                        \
	X(cache_shrinks, "changes", "refills caches rises", "stack capacities halved, or taken away when out of use") \
	X(cache_refusals, "refusals", "refills caches rises", "capacities not given, or not doubled, for cache_limit or the tier's own limit") \
	X(prewarm_blocks, "blocks", "refills caches rises", "blocks put into stacks before the thread asked for any") \
	X(settles, "passes", "frees rises", "passes over a heap whose live bytes had halved")                \
	X(refills_early, "refills", "refills early rises", "refills over at once: the inbox had filled the stack") \
	X(overflows_early, "blocks", "frees early rises", "blocks for a full stack that turned out to be of another heap by then") \
	X(frees_null, "calls", "early rises", "free(NULL): nothing to do")                                   \
	X(reallocs_kept, "calls", "early rises", "realloc that left the block where it is: it has the room") \
	X(reallocs_grown, "calls", "early rises", "realloc of a large block in place, or by moving its OS pages") \
	X(callocs_clean, "calls", "early rises", "calloc of memory never used, which needs no wiping")       \
	X(refusals, "calls", "early summary rises", "NULL returned: out of memory, or no such size or alignment") \
	X(purges_left, "purges", "early rises", "purges left to a thread that was at it")                    \
	X(slab_purged_bytes, "bytes", "pools rises", "OS pages without a used block given back from partly used slabs")

/* The rest of a snapshot: name, unit, views, help.  The rows of the view "committed" add up to committed_bytes. */
#define HAK_GLOBAL_STATS(X)                                                                                           \
	X(allocs, "blocks", "summary refills rises", "blocks handed out, ever")                                           \
	X(frees, "blocks", "summary frees rises", "blocks taken back, ever")                                              \
	X(alloc_bytes, "bytes", "refills rises", "bytes of blocks handed out, ever, rounded up to their class")           \
	X(freed_bytes, "bytes", "frees rises", "bytes of blocks taken back, ever")                                        \
	X(cache_hits, "blocks", "refills rises", "blocks handed out from a stack on the fast path")                       \
	X(cache_misses, "blocks", "refills rises", "blocks up to 1 MiB handed out on the slow path")                      \
	X(live_blocks, "blocks", "summary", "blocks that callers hold")                                                   \
	X(live_bytes, "bytes", "summary pools committed", "bytes of blocks that callers hold, rounded up to their class") \
	X(cached_bytes, "bytes", "pools committed", "blocks in the threads' stacks")                                      \
	X(capacity_bytes, "bytes", "caches", "blocks that the threads' stacks may hold: what cache_limit limits")         \
	X(peak_capacity_bytes, "bytes", "caches", "the most that capacity_bytes has been")                                \
	X(transit_bytes, "bytes", "pools committed", "blocks in outgoing batches and inboxes")                            \
	X(slab_free_bytes, "bytes", "pools committed", "free blocks of slabs in use, blocks never used among them")       \
	X(slab_tail_bytes, "bytes", "pools committed", "ends of slabs too short for a block")                             \
	X(free_dirty_bytes, "bytes", "pools committed", "free units whose memory has been used and not given back")       \
	X(free_clean_bytes, "bytes", "pools committed", "free units without memory behind them")                          \
	X(kept_whale_bytes, "bytes", "pools committed bigcache", "freed blocks above 1 MiB kept whole for reuse")         \
	X(metadata_bytes, "bytes", "pools committed", "memory mapped for heaps, slabs and batches")                       \
	X(index_bytes, "bytes", "pools", "of these, those for the registry or the array to scan (use_registry)")          \
	X(index_segments, "segments", "pools", "slabs, large runs and whales that stand there")                           \
	X(index_missing, "segments", "pools", "those that do not, as there was no memory: their addresses tell")          \
	X(index_refusals, "segments", "pools rises", "how often that was so, ever")                                       \
	X(read_us, "us", "pools", "time that it took to read all this: what moved meanwhile, between heaps and callers, is off") \
	X(committed_bytes, "bytes", "summary pools", "address space that may be touched: the parts in the view pools")    \
	X(peak_used_bytes, "bytes", "summary", "most bytes of live, cached and transit blocks at once, to an eighth at worst") \
	X(in_use_bytes, "bytes", "summary pools", "units in slabs and runs, and whales in use")                           \
	X(peak_in_use_bytes, "bytes", "summary pools", "the most that in_use_bytes has been")                             \
	X(large_blocks, "blocks", "pools", "blocks above 1 MiB that callers hold, in runs")                               \
	X(large_bytes, "bytes", "pools", "bytes of those runs")                                                           \
	X(whale_blocks, "blocks", "pools", "blocks in mappings of their own that callers hold")                           \
	X(whale_bytes, "bytes", "pools", "bytes of those mappings")                                                       \
	X(whale_hits, "blocks", "refills pools rises", "whales served from a kept mapping")                               \
	X(big_hits, "blocks", "summary bigcache rises", "blocks above 1 MiB served from BigCache")                        \
	X(big_misses, "blocks", "summary bigcache rises", "blocks above 1 MiB for which it had none, while it was on")    \
	X(big_entries, "blocks", "bigcache", "freed blocks in BigCache: kept_whale_bytes are theirs")                     \
	X(big_evicted_age, "blocks", "bigcache rises", "of those, given up as they had grown old, and by trim")           \
	X(big_evicted_budget, "blocks", "bigcache rises", "given up as more was kept than the options bigcache and retain allow") \
	X(big_evicted_need, "blocks", "bigcache rises", "given up as a block of another size or site needed the memory")  \
	X(big_keys, "keys", "bigcache", "pairs of site and size class that BigCache knows")                               \
	X(big_buckets, "buckets", "bigcache", "length of its hash table")                                                 \
	X(address_space_bytes, "bytes", "pools", "address space reserved for superslabs")                                 \
	X(superslabs, "superslabs", "pools", "superslabs in use")                                                         \
	X(slabs, "slabs", "pools", "slabs that heaps own")                                                                \
	X(orphan_slabs, "slabs", "pools threads", "slabs of dead threads that nobody has taken over")                     \
	X(heaps, "heaps", "threads", "heaps of running threads, the shared one included")                                 \
	X(heaps_made, "heaps", "threads rises", "heap structs ever made")                                                 \
	X(threads_exited, "threads", "summary threads rises", "threads that have handed their heap back")                 \
	X(shared_locks, "acquisitions", "summary locks rises", "acquisitions of locks that threads share (claims apart)") \
	X(shared_locks_contended, "acquisitions", "summary locks rises", "of these, those that had to wait")              \
	X(claims, "acquisitions", "locks rises", "acquisitions of heaps' claims")                                         \
	X(claims_contended, "acquisitions", "locks rises", "of these, those that had to wait")                            \
	X(purges, "runs", "pools rises", "runs of free units given back to the system")                                   \
	X(purged_bytes, "bytes", "pools rises", "dirty bytes of those runs")                                              \
	X(shards, "shards", "shards", "parts of the page heap with a lock each")                                          \
	X(shard_growths, "growths", "shards rises", "times that their number doubled")                                    \
	X(superslabs_moved, "superslabs", "shards rises", "free superslabs that another shard took")                      \
	X(runs_borrowed, "runs", "shards rises", "free runs that a thread took from another shard, where they lie")          \
	X(sites, "sites", "sites", "sites that have a row of their own")                                                  \
	X(site_blocks_untracked, "blocks", "sites rises", "blocks of sites that their live blocks do not count: no memory for the note")\
	X(ace_events, "events", "ace rises", "events of refills that ACE has read")                                       \
	X(ace_drops, "events", "ace rises", "events that found a ring full")                                              \
	X(ace_windows, "windows", "ace rises", "windows that ACE has judged")                                             \
	X(ace_windows_ignored, "windows", "ace rises", "windows with too many drops to judge by")                         \
	X(ace_changes, "changes", "ace rises", "targets that ACE has changed, or in shadow would have")                   \
	X(ace_undone, "changes", "ace rises", "of these, those undone because their own measure was no better for it")

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
	X(IN_USE, "about to be handed out while in use: freed twice before")                \
	X(RULE, "not a rule for a site: 42:nocache, name:lifetime=long and lib.so+0x1a2b:retain=0,shard=1 are") \
	X(NO_SITES, "sites are not captured: HAKMEM_SITES=1 must be set when the process starts") \
	X(MANY_RULES, "there are as many rules as there may be") \
	X(COMMAND, "no such command: hakmem.py and the library are of different versions") \
	X(LATE, "found only after the time in which it was wanted")

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
	X(page_heap, hak_page.shard[0].lock, "runs of units, orphaned slabs: all shards together") \
	X(ranges, hak_page.reserving, "reserved ranges and their new superslabs") \
	X(batch_pool, hak_pool.lock, "empty batches")                        \
	X(whales, hak_whales.lock, "mappings of their own")                  \
	X(bigcache, hak_bigcache.lock, "freed blocks above 1 MiB, kept")     \
	X(index, hak_index.lock, "where segments lie, with use_registry")    \
	X(metadata, hak_meta.lock, "memory for heaps, slabs and batches")   \
	X(sites, hak_sites.lock, "tables of sites, of rules and of their blocks")

/* Environment names with the prefix that are read by hakmem.py and not here. */
#define HAK_PYTHON_ENV(X) X("HAKMEM_LIBRARY")

/* Geometry.  Everything else follows from these. */
enum {
	HAK_UNIT_SHIFT = 16,              /* a unit is 64 KiB: the least that one heap owns */
	HAK_SUPER_UNITS = 64,             /* units in a superslab: one word of dirty bits */
	HAK_UNITS_MAX = 1 << 22,          /* units that the table covers: 256 GiB; 16 MiB of untouched bss */
	HAK_HEAPS_MAX = 1 << 16,          /* heap ids */
	HAK_RANGES_MAX = 64,              /* reserved ranges */
	HAK_SHARDS_MAX = 64,              /* shards of the page heap: a bit for each in a word */
	HAK_SHARD_SHARE = 8,              /* a shard touches clean memory while others' dirty is less than this part of what is in use */
	HAK_STACK_MAX = 2048,             /* most blocks in a stack */
	HAK_STACK_FIRST = 64,             /* blocks that a stack may hold at first */
	HAK_STACK_FIRST_BYTES = 64 << 10, /* most bytes in a stack at first, but four blocks if it may ever hold them */
	HAK_STACK_SHRINK = 4,             /* adaptive sizing: so many times smaller at least, */
	HAK_STACK_TIGHT_BYTES = 16 << 10, /* ... and a stack above the limit, with no more bytes than these: it may have none */
	HAK_PERIOD_REFILLS = 10,          /* a stack's capacity is thought about after so many refills, ... */
	HAK_PERIOD_FLUSHES = 8,           /* ... so many flushes without a refill, ... */
	HAK_PERIOD_MS = 1000,             /* ... or this time */
	HAK_BATCH_MOST = 64,              /* blocks of a refill: 64 of the smallest falling to 16 ... */
	HAK_BATCH_BYTES = 16 << 10,       /* ... at this many bytes, and fewer of larger ones */
	HAK_REMOTE_BLOCKS = 126,          /* pointers in a batch of remote frees: the struct is 1 KiB */
	HAK_REMOTE_BYTES = 256 << 10,     /* a batch with so many is posted; an inbox with so many is full */
	HAK_REMOTE_AT_ONCE = 64 << 10,    /* a block of this size is posted at once */
	HAK_LEFT_ALONE = 4,               /* full inboxes that others empty before an idle owner loses its slabs */
	HAK_KEPT_HEAPS = 8,               /* heaps of ended threads that wait as they are for the next thread, ... */
	HAK_KEPT_MS = 50,                 /* ... for so long, and so long for its first malloc */
	HAK_UNITS_AT_HAND = 4,            /* free units that a heap keeps, so that it need not go to the page heap for each */
	HAK_OUT_SLOTS = 16,               /* owners for which a thread collects batches at a time */
	HAK_POOL_MOVE = 16,               /* empty batches move between a heap and the pool so many at a time */
	HAK_INLINE_BITS = 512,            /* a slab of more blocks has its bitmap outside its struct */
	HAK_MAP_WORDS = 128,              /* words of such a bitmap: 64 KiB in blocks of 8 bytes */
	HAK_EPOCH_S = 10000000,           /* where our clock begins, in s: beyond all ages that options and rules can name */
	HAK_SPINS = 400,                  /* looks at a lock that is held before its thread sleeps: some microseconds */
	HAK_REGRET_MS = 100,              /* memory that is wanted again so soon should not have been purged */
	HAK_PURGE_SUPERS = 16,            /* superslabs given back in one call at most */
	HAK_TICK_EACH = 8,                /* a slow path takes as long as so many frees into a batch that is there */
	HAK_TICK = 64 * HAK_TICK_EACH,    /* from one look at the clock to the next; frees into batches count when those leave */
	HAK_STATS_US = 300,               /* time in which statistics are to be read, or it is tried again ... */
	HAK_STATS_TRIES = 10,             /* ... so often */
	HAK_WATCH_PART = 16,              /* a change by that part of the bytes in use, and so many bytes, is shown soon: ... */
	HAK_WATCH_BYTES = 256 << 10,
	HAK_WATCH_PAYS = 50,              /* ... after so many times what the last publication took */
	HAK_WATCH_TICK = 16,              /* ... where no heap counts them, if anybody watches */
	HAK_STALE_MS = 100,               /* remote frees that have been on their way for so long are helped along */
	HAK_SETTLE_LEAST = 1 << 20,       /* a heap whose live bytes never rose above this is not looked through */
	HAK_INDEX_FIRST = 1024,           /* entries of the index at first: 16 KiB */
	HAK_HELP_LOOKED = 16,             /* heaps that are looked at for one which needs help, when the clock is */
	HAK_AGE_LOOKED = 64,              /* runs in the order of age that are looked at for the place of one */
	HAK_BIG_STEPS = 8,                /* size classes above 64 MiB to a doubling: a power of two.  Below: exact units */
	HAK_BIG_SLACK = 8,                /* a kept block goes to a request if it is at most an eighth longer */
	HAK_BIG_PERIOD = 6,               /* a key's count of requests halves at every 1 << 6 requests for any */
	HAK_BIG_SHARE = 16,               /* runs of a key are kept that has a sixteenth of the requests of late */
	HAK_BIG_LOOKED = 16,              /* kept blocks of a key that are looked at for one that fits */
	HAK_BIG_BUCKETS = 256,            /* of BigCache's first table; it doubles at three keys to four buckets ... */
	HAK_BIG_BUCKETS_MOST = 65536,     /* ... up to this */
	HAK_BIG_IDLE = 256,               /* keys without a block that keep their counts before new keys take their place */
	HAK_NOTES = 8192 + 272,           /* notes of a slab: 64 KiB in blocks of 8 bytes, and not in the same cache sets as the next */
	HAK_GUARD = 64 << 10,             /* bytes that nobody may touch before and behind tables: any OS page */
	HAK_REFUSALS = 8,                 /* mappings that the system does not unmap before no more are tried */
	HAK_FORBIDDEN_RUNS = 16 << 10,    /* free runs that are set apart in mappings, of which a process has 65,530 */
	HAK_GAUGE_SHARE = 8,              /* a heap tells the gauges of a change once it is an eighth of what they know, ... */
	HAK_GAUGE_LEAST = 4 << 10,        /* ... but not of less than these bytes, ... */
	HAK_GAUGE_MOST = 64 << 10,        /* ... and always of these */
	HAK_SITES_MAX = 65536,            /* rows of the table of sites, that of all others among them */
	HAK_SITE_BUCKETS = 2 * HAK_SITES_MAX, /* places to find a row by: half of them are empty at least */
	HAK_SITE_COUNTS = 4,              /* copies of a site's counts, for threads not to meet */
	HAK_SITE_RULES = 1024,            /* rules at most */
	HAK_SITE_WHERE = 512,             /* bytes of a rule's left side, its NUL included */
	HAK_TRACK_SHARES = 64,            /* parts of the table of sites' blocks, with a lock each */
	HAK_GROWN = 128,                  /* blocks that a heap remembers to have grown by moving; a power of two */
	HAK_GROUP_STACK = 32,             /* most blocks in a stack of a lifetime group */
	HAK_RING = 512,                   /* events in a ring: 8 KiB */
	HAK_RING_EVERY = 8,               /* refills of a class that one event stands for at first ... */
	HAK_RING_RARELY = 2048,           /* ... and no more if as many as that already */
	HAK_ACE_LOG = 256,                /* decisions that are remembered */
	HAK_OWN_STACK = 128 << 10,        /* bytes of the stack of a thread of our own */
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
#define HAK_RUN_UNITS ((uint32_t)(HAK_RUN_MAX / HAK_UNIT))
#define HAK_SMALL_MAX ((size_t)1024)     /* the first table of sizes, by bytes */
#define HAK_MID_MAX ((size_t)32768)      /* the second, by 256 bytes */
#define HAK_CLASS_MAX ((size_t)1 << 20)  /* the third, by 8 KiB */

#define HAK_ADD_CLASSES(name, lo, hi, steps, blocks, classes, stack, stacks) +classes
#define HAK_NAME_TIER(name, lo, hi, steps, blocks, classes, stack, stacks) HAK_TIER_##name,
enum { HAK_CLASSES = 0 HAK_TIERS(HAK_ADD_CLASSES) };

/* Behind the classes stand their groups, for sites with a rule: two lifetimes of those up to HAK_MID_MAX, then all once
 * more without stacks.  A class of a group has its own slabs and the geometry of its `base`. */
#define HAK_ADD_LIVED(name, lo, hi, steps, blocks, classes, stack, stacks) +((hi) <= HAK_MID_MAX ? (classes) : 0)
enum {
	HAK_GROUP_CLASSES = 0 HAK_TIERS(HAK_ADD_LIVED),
	HAK_GROUPS = 2, /* short, long */
	HAK_CLASS_UNCACHED = HAK_CLASSES + HAK_GROUPS * HAK_GROUP_CLASSES,
	HAK_CLASS_COUNT = HAK_CLASS_UNCACHED + HAK_CLASSES,
};
_Static_assert(HAK_CLASS_COUNT <= 256, "a unit word has 8 bits for the class");
enum { HAK_TIERS(HAK_NAME_TIER) HAK_TIER_whale, HAK_TIER_COUNT };
#define HAK_NAME_POLICY(name, unit, of, windows, measure, sentence) HAK_POLICY_##name,
enum { HAK_POLICIES(HAK_NAME_POLICY) HAK_POLICY_COUNT };
#define HAK_NAME_ERROR(name, text) HAK_ERR_##name,
enum { HAK_ERRORS(HAK_NAME_ERROR) HAK_ERR_COUNT };

/* ================================================ compiler and platform ======================================== */

#define HAK_EXPORT __attribute__((visibility("default")))
#define HAK_COLD __attribute__((cold, noinline))
/* Of a variable: it begins an OS page, or it stands on that of what is not zero at first.  See the state section. */
#define HAK_PAGE __attribute__((aligned(4096)))
#define HAK_DATA __attribute__((section(".data")))
/* What every process runs, but seldom.  It stands beside the hot code, so that a process which needs no more has none of
 * what is cold in its memory: the system maps the neighbours of a page, too, 64 KiB at a time. */
#define HAK_START __attribute__((noinline, section(".text.startup")))
#define HAK_NOINLINE __attribute__((noinline))
#define HAK_INLINE static inline __attribute__((always_inline))
#define HAK_LINE_SIZE 64
#define HAK_LINE __attribute__((aligned(HAK_LINE_SIZE)))
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

/* To the compiler x may be another value from here on, so that it does not keep an address that it has computed with it
 * in a register, one instruction more, but computes it anew, which an access to memory does for nothing. */
#define hak_afresh(x) __asm__("" : "+r"(x))
/* x is what the function will return, and best loaded into the register for that. */
#if defined(__x86_64__)
#define hak_result(x) __asm__("" : "+a"(x))
#else
#define hak_result(x) ((void)0)
#endif

/* pthread_atfork is the one function that glibc links into each library, and that goes through a PLT: this is what it
 * does, without the 48 KiB of cold code around that. */
#ifdef __GLIBC__
extern int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *of);
extern void *__dso_handle __attribute__((visibility("hidden")));
#define hak_atfork(prepare, parent, child) __register_atfork(prepare, parent, child, __dso_handle)
#else
#define hak_atfork(prepare, parent, child) pthread_atfork(prepare, parent, child)
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
#define hak_hg_relaxed(object) VALGRIND_HG_DISABLE_CHECKING(&(object), sizeof(object))
typedef struct hak_lock_word { pthread_mutex_t mutex; } hak_lock_word_t;
#define HAK_PEEKS 0 /* it cannot know that what is read while somebody writes is thrown away: readers take the lock */
#else
#define HAK_PEEKS 1
#define hak_hg_before(p) ((void)0)
#define hak_hg_after(p, loaded) (loaded)
#define hak_hg_relaxed(object) ((void)0)
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
#define hak_or_shared(p, v) __atomic_fetch_or((p), (v), __ATOMIC_RELAXED)
#define hak_and_shared(p, v) __atomic_fetch_and((p), (v), __ATOMIC_RELAXED)
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
static HAK_DATA const void *hak_fork_thread;
static _Thread_local const char hak_thread __attribute__((tls_model("initial-exec")));
#define hak_fork_is_here() (hak_unlikely(hak_load(&hak_fork_thread) != NULL) && hak_fork_thread_is_self())
static inline bool hak_fork_thread_is_self(void) { return hak_load(&hak_fork_thread) == &hak_thread; }

/* That thread ends the process on account of a misuse.  It may hold locks, and may still allocate, in a handler of
 * SIGABRT; it unlocks nothing any more, so that the others come to rest. */
static HAK_DATA bool hak_dying;

/* In a page that the system wipes in a child: 1, and 0 in one that came to be without fork's handlers (clone as a system
 * call, _Fork); behind it 1 where hak_live's files are the process's own.  NULL: the system knows no such pages. */
static HAK_DATA uint32_t *hak_fork_page;

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
	/* As long as a batch takes, and no longer: with more threads than cores the holder is often not running. */
	for (int i = 0; i < HAK_SPINS; i++) {
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

static inline bool hak_lock_try_uncounted(hak_lock_t *l) { return !HAK_LOCKING || hak_lock_grab(l); }

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

/* A block of the whale tier in BigCache: part of its first unit's hak_slab_t, or of its hak_whale_t, so that to keep
 * it takes no memory.  BigCache's lock. */
typedef struct hak_big {
	struct hak_big *next, *prev;   /* among those of its key, the newest first */
	struct hak_big *older, *newer; /* in the order of age of its kind */
	struct hak_big_key *key;       /* NULL: it is not in BigCache */
	size_t len;                    /* bytes */
	uint64_t stamp;                /* ms: when it was freed */
	uint64_t kind;                 /* HAK_BIG_RUN, HAK_BIG_WHALE */
} hak_big_t;

enum { HAK_BIG_RUN, HAK_BIG_WHALE, HAK_BIG_KINDS };

/* What BigCache knows of one call site's blocks of one size class.  Recycled, never unmapped.  BigCache's lock. */
typedef struct hak_big_key {
	struct hak_big_key *next; /* in its bucket */
	hak_big_t *first;         /* its blocks */
	uint32_t site, class;     /* hak_big_site, hak_big_class */
	uint64_t entries, bytes;  /* of its blocks */
	uint64_t hits, misses;    /* since it was first asked for; a key without a block may be forgotten */
	uint32_t use;             /* requests of late ... */
	uint32_t period;          /* ... as counted in this period */
} hak_big_key_t;

/* What is known of one unit.  The head unit of a slab describes the slab; the first unit of a free run, the run (and
 * its last unit repeats len, so that a neighbour finds the start).  Written under the claim of the owner of the unit,
 * or under its shard's lock while the unit is free or an orphan's. */
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
		struct {                             /* a large block.  Whoever makes it, and then its caller */
			uint64_t asked;                  /* hardened: bytes that its caller asked for */
			uint32_t site;                   /* where it was made, as hak_big_site has it */
		};
		hak_big_t big;                       /* a large block that was freed, and is kept; while it is live: no key */
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
	uint64_t dirty;                     /* bit for each unit: has memory behind it.  Its shard's lock */
	uint32_t shard;                     /* its number: under the locks of the old one and the new; read by anybody */
	hak_slab_t unit[HAK_SUPER_UNITS];
	uint64_t map[HAK_SUPER_UNITS][HAK_MAP_WORDS];
	hak_note_t note[HAK_SUPER_UNITS][HAK_HARDENED ? HAK_NOTES : 0]; /* by the head unit of a slab */
} hak_super_t;

typedef struct hak_class {
	uint64_t reciprocal;  /* ceil(2^40 / size): offset -> index, exact below 2^20 */
	uint32_t size;        /* bytes of a block */
	uint32_t weight;      /* what a block adds to hak_batch.fill; from HAK_REMOTE_AT_ONCE on, what makes any batch full */
	uint32_t blocks;      /* in a slab */
	uint16_t units;       /* of a slab */
	uint16_t first, most; /* capacity of a stack: at first, and at most */
	uint16_t least, tight;/* likewise: least while it is in use, and above the limit (tight: 0 for large blocks) */
	uint16_t room;        /* slots of its small region */
	uint16_t small, large;/* where the two regions of slots begin (their NULL slot) */
	uint16_t batch;       /* blocks of a refill at most */
	uint8_t tier;
	uint8_t base;         /* the class itself, or that of which it is a group's copy */
	bool cached;          /* the tier's switch is on */
	bool plain;           /* hardened: slabs of one unit, level 1: the fast paths look at its notes */
} hak_class_t;

/* Pointers on their way to the heap that owns their slabs.  While a thread fills it, blocks and bytes are counted in one
 * word, so that one addition and one test say whether it is full: the low 8 bits begin at 128 less the blocks that there is
 * place for, those above at 2^23 less the bytes that it may hold.  It is full once either has its highest bit set. */
typedef struct hak_batch {
	union {
		struct hak_batch *next;          /* while it stands in a list */
		struct {
			uint32_t fill;               /* owner, while it is filled: blocks and bytes so far */
			uint32_t empty;              /* likewise: what fill was at first */
		};
	};
	uint16_t count;                      /* once it is closed */
	uint16_t from;                       /* the heap that filled it, and gets it back */
	uint32_t bytes;                      /* once it is closed */
	void *block[HAK_REMOTE_BLOCKS];
} hak_batch_t;
_Static_assert(sizeof(hak_batch_t) == 1024, "a batch is 1 KiB");
#define HAK_FILL_BLOCK 1u
#define HAK_FILL_BYTES(n) ((uint32_t)(n) << 8)
#define HAK_FILL_MOST ((uint32_t)1 << 23) /* bytes */
#define HAK_FILL_FULL (HAK_FILL_BYTES(HAK_FILL_MOST) | 0x80u)
#define hak_fill_blocks(fill) ((size_t)((fill) & 255u) - (0x80u - HAK_REMOTE_BLOCKS))
_Static_assert(HAK_REMOTE_BLOCKS < 0x80, "blocks of a batch are counted in 7 bits");
_Static_assert(HAK_ACE_WIDE * HAK_REMOTE_BYTES <= HAK_FILL_MOST, "as many bytes as ACE may allow can be counted");
_Static_assert(HAK_FILL_MOST + HAK_CLASS_MAX <= 1 << 24, "... and one block more");
_Static_assert(HAK_HEAPS_MAX <= 1 << 16, "ids of heaps fit the field from");

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
	uint64_t since;      /* owner: v when the period began, at whose end the capacity is thought about */
	uint32_t grows;      /* owner: times that the capacity was doubled */
	uint32_t shrinks;    /* owner: and halved */
	uint32_t refills;    /* owner: in this period */
	uint32_t flushes;    /* owner: likewise */
	uint16_t mark;       /* owner: highest level in the last period */
	bool young;          /* owner: the period began after the last look at the clock */
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

enum { HAK_SERVED_WORDS = (HAK_CLASS_COUNT + 63) / 64 };

typedef struct hak_heap {
	uint64_t v[HAK_CLASS_COUNT];        /* owner: 16 bits stack index, 48 bits count of allocations; first, for short addresses */
	uint32_t tag;                       /* id << 8; a unit word less this is the class if the heap owns the unit */
	uint32_t id;
	uint16_t top[HAK_CLASS_COUNT];      /* owner: index at which the stack is full; 0: not in use, as floor and index */
	uint16_t floor[HAK_CLASS_COUNT];    /* owner: index of the NULL below the stack */
	int32_t tick;                       /* owner: work of slow paths until the clock is looked at, below 0 at once */
	uint32_t spares;                    /* owner: batches in spare */
	hak_batch_t *spare;                 /* owner: empty batches */
	hak_batch_t *out[HAK_OUT_SLOTS];    /* owner: batches being filled */
	uint32_t out_owner[HAK_OUT_SLOTS];  /* owner: for which heap */
	uint32_t outs;                      /* owner: batches in out */
	uint64_t out_stamp;                 /* owner: ms when what is pending was last posted */
	uint64_t period_stamp;              /* owner: ms when periods were last ended for their age */
	uint32_t helped;                    /* owner: heaps looked at for one that needs help, in turn */
	uint32_t thread;                    /* owner: its thread's id for the system, 0 without one */
	uint16_t grown[HAK_GROWN];          /* owner: the blocks to which realloc moved what had grown, by address bits */
	hak_ring_t *ring;                   /* constant; NULL: it tells ACE nothing */
	bool running;                       /* a thread has it: heaps lock */
	uint8_t dying;                      /* owner: how often its destructor has put itself off */
	struct hak_heap *next_free;         /* heaps lock */
	hak_lock_t claim HAK_LINE;
	uint64_t used_bytes[HAK_TIER_whale]; /* claim: bytes of blocks out of its slabs, by tier */
	uint64_t stack_bytes[HAK_TIER_whale]; /* claim: that its stacks may hold */
	uint64_t told_bytes[HAK_TIER_whale]; /* claim: what the gauges know of that */
	uint64_t told_low[HAK_TIER_whale];  /* claim: they are told when it leaves the range that begins here ... */
	uint64_t told_span[HAK_TIER_whale]; /* claim: ... and is so long */
	uint64_t peak_bytes;                /* claim: most of the sum of used_bytes since the last settling */
	uint32_t left_alone;                /* claim: full inboxes that others have emptied since the owner's last slow path */
	uint32_t lost;                      /* claim: its slabs were disowned, and its stacks not yet sorted out */
	uint32_t shard;                     /* owner: the shard that a rule names for what is asked for just now, and 1 */
	uint64_t units_stamp;               /* claim: ms when the last of these came */
	uint32_t units;                     /* claim: of these, ... */
	uint32_t unit[HAK_UNITS_AT_HAND];   /* ... free units of slabs that were empty, for the next ones */
	uint32_t kept;                      /* claim: HAK_KEPT_...: has slabs of a thread that has ended */
	uint64_t kept_stamp;                /* claim: ms since when */
	uint64_t served[HAK_SERVED_WORDS];  /* claim: bit for each class of which it ever had a stack in use or a slab */
	hak_heap_counters_t count;
	hak_batch_t *inbox HAK_LINE;        /* anybody: pushed with CAS; HAK_CLOSED when no thread has the heap */
	uint64_t inbox_bytes;               /* anybody: atomic */
	uint64_t inbox_stamp;               /* whoever pushes first: ms when the inbox ceased to be empty */
	hak_batch_t *returned;              /* anybody: its batches, empty again: pushed with CAS, taken all at once by the owner */
	hak_bin_t bin[HAK_CLASS_COUNT] HAK_LINE;
	void *slot[] HAK_LINE;              /* owner: the stacks; slot[0] is NULL */
} hak_heap_t;

#define HAK_CLOSED ((hak_batch_t *)1)

/* Slabs and stacks of a thread that has ended stay with its heap for the next thread.  Whoever holds the claim of a heap
 * that waits for one may do all that its owner may: a thread that takes it over claims it first. */
enum { HAK_KEPT_NOT, HAK_KEPT_WAITING, HAK_KEPT_UNUSED /* the next thread has it, and has not allocated yet */ };

/* Unit words. */
enum {
	HAK_OWNER_NONE = 0,   /* free, or not committed */
	HAK_OWNER_RUN = 1,    /* a large block; the low byte says which unit of it */
	HAK_OWNER_ORPHAN = 2, /* a slab without a heap; the low byte is the class */
	HAK_OWNER_SHARED = 3, /* the heap that threads without one share */
	HAK_OWNER_FIRST = 4,  /* the first thread's heap */
};
enum {
	HAK_RUN_HEAD = HAK_OWNER_RUN << 8, /* a large block, live.  The one CAS to KEPT is free's: a second free finds it */
	HAK_RUN_BODY,                      /* the units behind it */
	HAK_RUN_PURGING,                   /* in the hands of a thread that purges, or not committed: nobody's */
	HAK_RUN_KEPT,                      /* freed: in BigCache, or in the hands of the thread that freed it or takes it */
	HAK_RUN_AT_HAND,                   /* a free unit that a heap has at hand */
};
#define hak_word_owner(w) ((w) >> 8)
#define hak_word_class(w) ((w)&255u)

/* Each mapping for metadata begins with one, so that it can be told where they are.  Constant once it is in the list. */
typedef struct hak_chunk {
	struct hak_chunk *next HAK_LINE; /* the one before it */
	size_t len;                      /* mapped bytes */
} hak_chunk_t;

typedef struct hak_range {
	char *base;      /* of the unit `first` */
	uint32_t first;  /* index of its first unit */
	uint32_t units;  /* reserved */
	uint32_t top;    /* committed: ranges lock */
	size_t mapped;   /* bytes: more than its units' if the system did not take the ends back */
} hak_range_t;

typedef struct hak_whale {
	struct hak_whale *next; /* in its bucket, or among the unused */
	char *base;             /* of the block and of the mapping */
	size_t len;             /* mapped bytes */
	size_t asked;           /* hardened: of these, those that its caller asked for */
	uint32_t site;          /* where it was made, as hak_big_site has it */
	uint64_t keep;          /* by a rule: ms for which it is kept once it is freed, and 1; 0: no rule says */
	hak_big_t big;          /* in BigCache, after it was freed */
} hak_whale_t;

/* An entry of the index.  Lock of the index; readers without it throw away what they read while somebody writes. */
typedef struct hak_entry {
	uintptr_t base; /* of the segment, a multiple of an OS page; registry: and which of its granules, in the low bits */
	size_t len;     /* bytes of the segment; 0: no entry */
} hak_entry_t;

typedef struct hak_entries { /* a table of them: never unmapped, as somebody may still read an old one */
	size_t size;    /* a power of two: constant */
	uint32_t shift; /* of the hash, so that as many of its bits are left: constant */
	hak_entry_t at[];
} hak_entries_t;

/* A site, by its number in the order in which they were seen. */
typedef struct hak_site {
	uint64_t id;            /* what the caller said, or an address of code: set before the row can be found */
	uint64_t policy;        /* anybody, as one word: what the rules say, and of which generation of rules that is */
	const char *place;      /* code: its name as rules have it, once somebody has asked; set once */
	const char *function;   /* likewise: the function around it */
	bool code;              /* id is an address: set with it */
} hak_site_t;

/* Anybody, atomic: one of the copies of a site's counts. */
typedef struct hak_site_count {
	uint64_t allocs, bytes;         /* ever */
	uint64_t live, live_bytes;      /* of the blocks that are tracked; one copy alone may be below 0 */
} hak_site_count_t;

typedef struct hak_rule {
	char where[HAK_SITE_WHERE];     /* as the user wrote it: set before the rule can be seen */
	uint64_t id;                    /* a number, or the offset in a module */
	uint32_t kind;                  /* HAK_RULE_... */
	uint32_t length;                /* of the module's or the symbol's name, where it begins */
	uint64_t policy;                /* anybody: HAK_POLICY_... bits; 0: taken back */
} hak_rule_t;

/* A block of a site, so that its end is known, too.  Lock of the share. */
typedef struct hak_track {
	uintptr_t block;                /* 0: a free place */
	uint64_t what;                  /* bytes that its caller asked for, above 17 bits of the site's row */
} hak_track_t;

/* The free runs by length: exact below 64 units, four bins to a doubling above. */
enum { HAK_RUN_BINS = 64 + 4 * 20, HAK_RUN_WORDS = (HAK_RUN_BINS + 63) / 64, HAK_WHALE_BUCKETS = 4096 };
enum { HAK_CLEAN, HAK_DIRTY };
enum { HAK_SHARD_NONE = HAK_SHARDS_MAX }; /* of a superslab that could not be committed */

/* What is counted of a shard: under its lock, and read by anybody. */
typedef struct hak_shard_counts {
	uint64_t runs;                                   /* free runs */
	uint64_t used_units, dirty_units, clean_units;   /* in use; free */
	uint64_t purging_dirty, purging_clean;           /* in the hands of the purging thread */
	uint64_t regret_units;                           /* kept beyond the option, since what was purged came back at once */
	uint64_t supers;                                 /* superslabs that belong to it */
	uint64_t moved;                                  /* superslabs that it took from others, ever */
	uint64_t lent;                                   /* runs that threads of others took from it, ever */
	uint64_t purges, purged_units;
	uint64_t taken_units, fresh_units;               /* ever handed out; of these, those that were clean */
	uint64_t aged_units, over_units;                 /* of purged_units, those that went for their age; for being too many */
	uint64_t large_blocks, large_units, large_allocs, large_frees;
	uint64_t large_units_alloced, large_units_freed; /* ever */
} hak_shard_counts_t;

/* A part of the page heap: the free runs and the orphans in superslabs that belong to it.  All under its lock. */
typedef struct hak_shard {
	hak_lock_t lock HAK_LINE;
	hak_shard_counts_t count;
	uint64_t oldest_stamp;                           /* ms, of the oldest dirty run while there is one; read by anybody */
	uint64_t nonempty[2][HAK_RUN_WORDS];             /* bins that are not; read by anybody */
	hak_list_t bin[2][HAK_RUN_BINS];                 /* free runs: clean, and with dirty units */
	hak_slab_t *oldest, *newest;                     /* dirty runs by age */
	uint64_t regret_stamp;                           /* ms when regret_units was last halved */
	uint64_t recent_units, recent_stamp;             /* purged of late, and when the last of it was */
	uint64_t orphan_untold[HAK_TIER_whale];          /* bytes freed in orphans that the gauges do not know of */
	hak_list_t orphan[HAK_CLASS_COUNT];                  /* slabs without a heap that are worth taking over */
	hak_list_t orphan_full[HAK_CLASS_COUNT];
	uint64_t orphans[HAK_CLASS_COUNT], orphan_used[HAK_CLASS_COUNT];
	uint64_t orphan_received[HAK_CLASS_COUNT], orphan_claimed[HAK_CLASS_COUNT];
} hak_shard_t;

#define HAK_DECLARE_OPTION(name, type, unit, def, lo, hi, when, help, use) int64_t name;
typedef struct hak_options {
	HAK_OPTIONS(HAK_DECLARE_OPTION)
} hak_options_t;

/* ===================================================== state =================================================== */

#define HAK_DEFAULT_OPTION(name, type, unit, def, lo, hi, when, help, use) .name = (def),
static hak_options_t hak_option = {HAK_OPTIONS(HAK_DEFAULT_OPTION)}; /* set at start; relaxed after */

/* What the first call touches stands on as few OS pages as may be: each of the large tables below begins on one, and what
 * is small stands before it.  (The compiler lays out last what is defined first.  Nothing but memory hangs on it.) */

/* The tables that free believes.  In the hardened library they stand together, between guards. */
#if HAK_HARDENED
static struct {
	char before[HAK_GUARD];
#define HAK_TABLE(type, name, count) type name[count];
#else
#define HAK_TABLE(type, name, count) static type hak_##name[count];
#endif
HAK_TABLE(hak_heap_t *, heap, HAK_HEAPS_MAX)                         /* by id; set once */
HAK_TABLE(HAK_PAGE hak_class_t, class, HAK_CLASS_COUNT)              /* set at start, as are the last three */
HAK_TABLE(hak_super_t *, super, HAK_UNITS_MAX / HAK_SUPER_UNITS)     /* metadata; NULL: not committed */
HAK_TABLE(uint32_t, unit, HAK_UNITS_MAX)                             /* the unit table */
HAK_TABLE(uint8_t, class_small, HAK_SMALL_MAX + 1)                   /* by bytes, no shift: few of its lines are in use at a time */
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
	uint32_t group_slot; /* of these, the first of the groups' */
	uint64_t start;    /* ms: when the first call came */
	pthread_key_t key; /* its destructor is the end of a thread */
	bool has_key;
	uint64_t secret[2]; /* hardened: for the order of reuse, odd, and for the seals */
} hak_boot;

#define HAK_POLICY_OF_class 1
#define HAK_POLICY_OF_all 0
#define HAK_POLICY_BIT(name, unit, of, windows, measure, sentence) | HAK_POLICY_OF_##of << HAK_POLICY_##name
enum { HAK_POLICIES_OF_CLASS = 0 HAK_POLICIES(HAK_POLICY_BIT) };
_Static_assert((HAK_POLICIES_OF_CLASS & (HAK_POLICIES_OF_CLASS + 1)) == 0, "policies of a class come first");
enum {
	HAK_POLICIES_FIRST = __builtin_popcount(HAK_POLICIES_OF_CLASS),
	HAK_TARGETS = HAK_POLICY_COUNT + HAK_POLICIES_FIRST * (HAK_CLASSES - 1),
};
static struct { /* lock: ACE, or the first call; relaxed for readers.  Touched only by hak_target_... */
	uint64_t value[HAK_TARGETS]; /* of one policy behind the other: one, or one for each class */
} hak_target;

static struct { /* lock: heaps */
	hak_lock_t lock HAK_LINE;
	uint32_t made;      /* ids up to this one have a struct; published with release */
	uint32_t running;
	uint32_t idle;      /* structs in free */
	uint32_t kept;      /* anybody: atomic: those of them that are HAK_KEPT_WAITING */
	uint64_t exited;
	hak_heap_t *free;
} hak_heaps HAK_PAGE;

static struct {
	uint32_t shards;                                 /* a power of two: set at start, under the purge lock after */
	uint64_t waits, waits_stamp;                     /* anybody: contended acquisitions a second ago at most, and when */
	uint64_t growths;                                /* purge lock */
	uint32_t purge_next;                             /* purge lock: the shard that gives memory back first, in turn */
	bool missed;                                     /* atomic: somebody wanted a purge while another was at it */
	uint64_t nonempty HAK_LINE;                      /* bit for each shard with a free run: written under its lock; atomic */
	uint64_t orphaned[HAK_CLASS_COUNT];                  /* bit for each shard with an orphan worth taking over: likewise */
	uint64_t peak_bytes;                             /* anybody: most bytes in use, ever */
	uint64_t peak_shown;                             /* anybody: likewise, since the peaks were reset */
	hak_lock_t purging HAK_LINE;                     /* held by the one thread that gives memory back */
	hak_lock_t reserving HAK_LINE;                   /* the lock "ranges" */
	hak_range_t range[HAK_RANGES_MAX];
	uint32_t ranges;                                 /* published with release: free reads it without the lock */
	hak_shard_t shard[HAK_SHARDS_MAX];               /* those in use come first; the others are untouched */
} hak_page;

static hak_heap_counters_t hak_alone; /* anybody, atomic: what threads without a heap have counted */

static struct { /* anybody: atomic */
	uint64_t used[HAK_TIER_COUNT]; /* bytes of blocks out of their slabs, but for what heaps have not told yet */
	uint64_t peak[HAK_TIER_COUNT]; /* most of these since the peaks were reset */
	uint64_t peak_all;             /* most of their sum */
} hak_gauge HAK_LINE;

static struct { /* anybody: atomic.  Written under the claim of the heap whose capacity changes */
	uint64_t bytes; /* sum over all stacks of capacity * size of a block */
	uint64_t peak;  /* most of that since the peaks were reset */
} hak_cache HAK_LINE;

static struct { /* lock: batch pool */
	hak_lock_t lock HAK_LINE;
	hak_batch_t *free;
	uint64_t count;
} hak_pool;

/* BigCache: freed blocks of the whale tier, whole, by site and size class.  Its blocks are neither live nor free. */
static struct { /* lock: bigcache */
	hak_lock_t lock HAK_LINE;
	hak_big_key_t **bucket;                         /* first, or a mapping */
	hak_big_key_t *first[HAK_BIG_BUCKETS];
	uint32_t buckets;                               /* 0: not begun */
	uint32_t keys, idle;                            /* in the table; of these, without a block */
	uint32_t grow_at;                               /* keys at which the table is to double */
	uint32_t hand;                                  /* bucket where the last idle key was found */
	hak_big_key_t odd;                              /* in no bucket: blocks that are kept as they cannot be had off */
	uint64_t table_bytes;                           /* mapped for tables */
	hak_big_t *oldest[HAK_BIG_KINDS], *newest[HAK_BIG_KINDS];
	uint64_t stamp;                                 /* of the oldest of both; UINT64_MAX: none.  Read by anybody */
	uint64_t entries[HAK_BIG_KINDS];                /* blocks in it */
	uint64_t units[HAK_SHARDS_MAX];                 /* of runs, by the shard that they belong to.  Read by anybody */
	uint64_t shards;                                /* bit for each shard that has some: likewise */
	uint64_t bytes[HAK_BIG_KINDS];                  /* likewise */
	uint64_t hits, misses;
	uint64_t run_allocs, run_frees;                 /* runs that went out to callers and came from them, ever */
	uint64_t run_alloc_bytes, run_freed_bytes;
	uint64_t aged, over, needed;                    /* given up */
} hak_bigcache = {.stamp = UINT64_MAX};

enum { HAK_BY_ADDRESS, HAK_BY_REGISTRY, HAK_BY_SCAN }; /* the option use_registry */
enum { HAK_GRANULE_STEP = 4, HAK_GRANULE_SIZES = 8, HAK_GRANULE_BITS = 31 };

static struct { /* lock: index; turn, table, used, sizes and missing are read without it, too */
	hak_lock_t lock HAK_LINE;
	uint64_t turn;           /* odd while somebody writes */
	hak_entries_t *table;
	uint64_t used;           /* entries in it */
	uint32_t sizes;          /* registry: bit set for each size of granules that a segment has */
	uint64_t missing;        /* segments that are in no entry, as there was no memory */
	uint64_t of_size[HAK_GRANULE_SIZES]; /* registry: segments by size of granules */
	uint64_t segments, refusals, bytes;
} hak_index;

static struct { /* lock: metadata */
	hak_lock_t lock HAK_LINE;
	hak_chunk_t *chunk; /* the newest mapping */
	char *at, *end;
	uint64_t bytes;
} hak_meta;

static struct { /* lock: sites */
	hak_lock_t lock HAK_LINE;
	uint32_t on;             /* hak_alloc_at looks its site up: set once, relaxed */
	uint32_t generation;     /* goes up with each change of the rules, published with release; 20 bits */
	uint32_t made;           /* rows; published with release */
	uint32_t rules;          /* likewise, of rule */
	uint32_t *bucket;        /* numbers of rows by hash, 0: none; published with release, and so is each of them */
	hak_site_t *row;         /* row 0 stands for all sites that have none; set before bucket, as is the next */
	hak_site_count_t *count; /* HAK_SITE_COUNTS times HAK_SITES_MAX */
	hak_rule_t *rule;        /* set with the first rule */
	uint64_t bytes;          /* anybody, atomic: mapped for all this */
	uint64_t untracked;      /* anybody, atomic: blocks */
	hak_site_count_t none;   /* anybody, atomic: of what has no row, as there was no memory for the table */
} hak_sites HAK_PAGE;

static struct { /* lock: whales */
	hak_lock_t lock HAK_LINE;
	hak_whale_t *bucket[HAK_WHALE_BUCKETS];
	hak_whale_t *unused;
	uint64_t live, bytes, allocs, frees, hits;
	uint64_t alloc_bytes, freed_bytes; /* ever */
	uint64_t fresh_bytes;              /* mapped, ever */
	uint64_t aged_bytes, over_bytes;   /* anybody, atomic: unmapped for their age, and for being too many, ever */
} hak_whales;

static struct hak_track_share { /* lock: its own */
	hak_lock_t lock HAK_LINE;
	hak_track_t *place;      /* a block stands at its hash, or behind it without a gap */
	size_t places, used;     /* places: a power of two, or 0 */
} hak_track[HAK_TRACK_SHARES];

static uint32_t hak_class_end = HAK_CLASSES; /* classes in use: all with the first rule; published with release */

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

/* How a slow path learns that somebody wants something of it: a reader in another process, or a signal's sender. */
static struct {
	uint32_t calm;                   /* what `look` points to where there is no reader's word: 1 if a signal has come */
	uint32_t *look;                  /* anybody: not 0 if `act` is to be called now */
	uint64_t next;                   /* anybody: ms when it is to be called anyway */
	uint64_t soon, shown;            /* anybody: ns when it may be called if much has changed; bytes used as it was shown */
	void (*act)(void);               /* hak_live_act, set at start; NULL: nobody watches */
	uint32_t ticks HAK_LINE;         /* anybody: slow paths that no heap counts */
} hak_watch HAK_LINE = {.look = &hak_watch.calm, .next = UINT64_MAX, .soon = UINT64_MAX};

/* Threads start on a heap that is empty and never written: its stacks have nothing to pop and none has room, whatever
 * class its tag makes of a unit word, so that the first malloc and free take the slow path, and no init test stands on the
 * fast one (realloc looks at no stack, so it asks for the tag).  It is all zeros, which cost nothing where nobody has written (and slot[0] among them, which its size does
 * not count); who did would fault in the debug and the hardened library, where it is constant. */
#if HAK_DEBUG || HAK_HARDENED
#define HAK_NEVER_WRITTEN const
#else
#define HAK_NEVER_WRITTEN
#endif
static HAK_NEVER_WRITTEN hak_heap_t hak_heap_none = {.slot = {NULL}};
static HAK_NEVER_WRITTEN hak_heap_t hak_heap_dead = {.slot = {NULL}}; /* the same, after the thread's end */
#define HAK_HEAP_START ((hak_heap_t *)(uintptr_t)&hak_heap_none)
/* What the hot paths take for the thread's heap, and what it is.  They differ where call sites are captured: there the
 * first stays on the empty heap, so that each call comes to the slow paths. */
static _Thread_local hak_heap_t *hak_self __attribute__((tls_model("initial-exec"))) = HAK_HEAP_START;
static _Thread_local hak_heap_t *hak_own __attribute__((tls_model("initial-exec"))) = HAK_HEAP_START;

/* Counts for the calling thread: in its heap, as the owner, or with all others that have none. */
#define hak_count_own(name)                              \
	do {                                                 \
		hak_heap_t *own_ = hak_own;                      \
		if (hak_likely(own_->id != 0))                   \
			hak_count(&own_->count.name, 1u);            \
		else                                             \
			(void)hak_add_shared(&hak_alone.name, 1u);   \
	} while (0)

/* ====================================================== OS ===================================================== */

HAK_INLINE uint32_t hak_min32(uint32_t a, uint32_t b) { return a < b ? a : b; }
HAK_INLINE uint32_t hak_max32(uint32_t a, uint32_t b) { return a > b ? a : b; }
HAK_INLINE size_t hak_round_up(size_t n, size_t to) { return (n + to - 1) & ~(to - 1); } /* to: a power of two */

/* ms, from HAK_EPOCH_S on: less any age it is above 0, just after the system's start, too. */
static uint64_t hak_os_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	return ((uint64_t)t.tv_sec + HAK_EPOCH_S) * 1000 + (uint64_t)t.tv_nsec / 1000000;
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

static HAK_START void *hak_os_map(size_t len, int protection) /* NULL: refused */
{
	void *p = hak_os_refuses(HAK_CALL_MMAP) ? MAP_FAILED
	        : mmap(NULL, len, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

/* False: refused, and all of it is mapped still.  Where a process has as many mappings as it may (vm.max_map_count),
 * the system takes no piece out of the middle of one. */
static HAK_START bool hak_os_unmap(void *p, size_t len)
{
	return !len || (!hak_os_refuses(HAK_CALL_MUNMAP) && munmap(p, len) == 0);
}

/* len bytes at a multiple of align (at least an OS page).  *whole, *whole_len: what is mapped; it is more if the system
 * does not take the ends back. */
static HAK_START void *hak_os_map_aligned(size_t len, size_t align, int protection, char **whole, size_t *whole_len)
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

static HAK_COLD uint64_t hak_os_ns(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* A file in memory, mapped, for this user's processes. */
typedef struct hak_file {
	void *at;                         /* NULL: there is none */
	size_t len;
	int fd;                           /* high up, as the low numbers have a meaning to others; closed in what is executed */
	dev_t device;                     /* a program may close the descriptor, and reuse its number: these tell */
	ino_t inode;
} hak_file_t;

/* `ours`: nobody else may write to it.  False: the system gives none. */
static HAK_COLD bool hak_os_share(hak_file_t *f, const char *name, size_t len, bool ours)
{
	/* linux/memfd.h and linux/fcntl.h.  Sealed: it stays as long as it is, and is never executed. */
	enum { CLOEXEC = 1, ALLOW_SEALING = 2, NOEXEC = 8, ADD_SEALS = 1024 + 9, SEALS = 1 | 2 | 4, FUTURE_WRITE = 16 };
	struct rlimit most;
	struct stat about;
	int low, high = -1;

	f->at = NULL;
	if (getrlimit(RLIMIT_FSIZE, &most) || most.rlim_cur < len || hak_os_refuses(HAK_CALL_MMAP))
		return false; /* a longer file would be a signal */
	low = (int)syscall(SYS_memfd_create, name, CLOEXEC | ALLOW_SEALING | NOEXEC);
	if (low < 0 && errno == EINVAL) /* before Linux 6.3 */
		low = (int)syscall(SYS_memfd_create, name, CLOEXEC | ALLOW_SEALING);
	if (low < 0)
		return false;
	for (int to = 230; high < 0 && to > 8; to /= 2)
		high = fcntl(low, F_DUPFD_CLOEXEC, to);
	if (high >= 0)
		close(low);
	f->fd = high >= 0 ? high : low;
	f->len = len;
	if (ftruncate(f->fd, (off_t)len) == 0 && fchmod(f->fd, 0600) == 0 && syscall(SYS_fstat, f->fd, &about) == 0) {
		f->device = about.st_dev;
		f->inode = about.st_ino;
		f->at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
		if (f->at != MAP_FAILED && ours)
			fcntl(f->fd, ADD_SEALS, FUTURE_WRITE); /* since Linux 5.1 */
		if (f->at != MAP_FAILED && fcntl(f->fd, ADD_SEALS, SEALS) == 0)
			return true;
		if (f->at != MAP_FAILED)
			munmap(f->at, len);
	}
	close(f->fd);
	f->at = NULL;
	return false;
}

static HAK_COLD void hak_os_close(const hak_file_t *f) /* if its descriptor is still that file */
{
	struct stat about;
	if (syscall(SYS_fstat, f->fd, &about) == 0 && about.st_dev == f->device && about.st_ino == f->inode)
		close(f->fd);
}

static HAK_COLD void hak_os_unshare(const hak_file_t *f)
{
	hak_os_close(f);
	hak_os_unmap(f->at, f->len);
}

/* Starts a thread that takes no signal and that nobody joins.  By the library's constructor, and in fork's child. */
static HAK_COLD int hak_os_thread(void *(*run)(void *))
{
	sigset_t all, before;
	pthread_attr_t attributes;
	pthread_t thread;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* it inherits that */
	if (!(error = pthread_attr_init(&attributes))) {
		pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
		pthread_attr_setstacksize(&attributes, HAK_OWN_STACK);
		error = pthread_create(&thread, &attributes, run, NULL); /* allocates */
		if (error == EINVAL) { /* a program with so much thread-local data that it needs a larger stack */
			pthread_attr_destroy(&attributes);
			pthread_attr_init(&attributes);
			pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
			error = pthread_create(&thread, &attributes, run, NULL);
		}
		pthread_attr_destroy(&attributes);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return error;
}

static HAK_START uint64_t hak_os_memory(void)
{
	struct sysinfo s;
	return sysinfo(&s) ? 0 : (uint64_t)s.totalram * s.mem_unit;
}

static HAK_START uint64_t hak_os_address_limit(void)
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

/* Texts that stand one behind the other, each with its NUL: the one n further on.  Long tables have such a text in place
 * of pointers, which the dynamic linker would have to write in every process that starts. */
static HAK_COLD const char *hak_text_at(const char *texts, size_t n)
{
	while (n--)
		texts += strlen(texts) + 1;
	return texts;
}

#define HAK_ERROR_TEXTS(name, text) #name "\0" text "\0"
static const char hak_errors[] = HAK_ERRORS(HAK_ERROR_TEXTS);
static HAK_COLD const char *hak_error_says(int error) { return hak_text_at(hak_errors, 2 * (size_t)error + 1); }

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

#define HAK_ENV_PREFIX "HAKMEM_"
#define HAK_OPTION_WORDS(name, type, unit, def, lo, hi, when, help, use) #name "\0" #type "\0" unit "\0" #when "\0" help "\0" use "\0"
static const char hak_option_words[] = HAK_OPTIONS(HAK_OPTION_WORDS);
#define HAK_OPTION_NUMBERS(name, type, unit, def, lo, hi, when, help, use) {def, lo, hi},
static const int64_t hak_option_numbers[][3] = {HAK_OPTIONS(HAK_OPTION_NUMBERS)};
enum { HAK_OPTION_COUNT = sizeof hak_option_numbers / sizeof *hak_option_numbers };
_Static_assert(sizeof(hak_options_t) == HAK_OPTION_COUNT * sizeof(int64_t), "one behind the other");
#define hak_option_place(i) ((int64_t *)(void *)&hak_option + (i))
static hak_option_row_t hak_option_rows[HAK_OPTION_COUNT]; /* by hak_option_all; lock: metadata */
static const char *hak_option_texts[HAK_OPTION_COUNT]; /* of options that are texts: in the environment, then copied */
#define HAK_OPTION_INDEX(name, type, unit, def, lo, hi, when, help, use) HAK_OPTION_##name,
enum { HAK_OPTIONS(HAK_OPTION_INDEX) };

/* The rows of the table, made when they are first asked for: most processes never do. */
static HAK_COLD const hak_option_row_t *hak_option_all(void)
{
	static char names[HAK_OPTION_COUNT][40];
	static uint32_t made;
	const char *words = hak_option_words;

	if (hak_load_acquire(&made))
		return hak_option_rows;
	hak_lock(&hak_meta.lock);
	for (int i = 0; i < HAK_OPTION_COUNT && !hak_load(&made); i++) {
		const char *text[6];
		for (int k = 0; k < 6; k++, words = hak_text_at(words, 1))
			text[k] = words;
		memcpy(names[i], HAK_ENV_PREFIX, sizeof HAK_ENV_PREFIX);
		for (size_t k = 0; text[0][k]; k++)
			names[i][sizeof HAK_ENV_PREFIX - 1 + k] = (char)(text[0][k] >= 'a' && text[0][k] <= 'z' ? text[0][k] - 32 : text[0][k]);
		hak_option_rows[i] = (hak_option_row_t){text[0], names[i], text[1], text[2], text[3], text[4], text[5],
			hak_option_numbers[i][0], hak_option_numbers[i][1], hak_option_numbers[i][2]};
	}
	hak_store_release(&made, 1u);
	hak_unlock(&hak_meta.lock);
	return hak_option_rows;
}

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

	if (row->type[0] == 't')
		return *out = (int64_t)strlen(text), true;
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
	const hak_option_row_t *rows = hak_option_all(), *near = NULL;
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
		const hak_option_row_t *row = &rows[i];
		int64_t value;
		if (strlen(row->env) == len && strncmp(variable, row->env, len) == 0) {
			bool good = hak_option_parse_text(row, equals + 1, &value) && value >= row->least && value <= row->most;
			*hak_option_place(i) = good ? value : row->initial; /* where a name stands twice, the last counts */
			hak_option_texts[i] = good && row->type[0] == 't' ? equals + 1 : NULL;
			if (!good && row->least == row->most)
				hak_sayf("hakmem: %s=%s: needs the %s library (python -m hakmem run --%s); ignored\n", row->env,
				         hak_say_text(text, sizeof text, equals + 1, SIZE_MAX), row->name, row->name);
			else if (!good && row->type[0] == 'm')
				hak_sayf("hakmem: %s=%s: must be one of %s; using %.*s\n", row->env,
				         hak_say_text(text, sizeof text, equals + 1, SIZE_MAX), row->unit, (int)strcspn(row->unit, "|"), row->unit);
			else if (!good)
				hak_sayf("hakmem: %s=%s: must be %s from %lld to %lld%s%s; using %lld\n", row->env,
				         hak_say_text(text, sizeof text, equals + 1, SIZE_MAX),
				         row->type[0] == 't' ? "a text" : row->type[1] == 'o' ? "a switch (on, off)"
				         : row->type[1] == 'y' ? "a number (64M, say)" : "a number",
				         (long long)row->least, (long long)row->most, *row->unit ? " " : "", row->unit, (long long)row->initial);
			return;
		}
	}
	hak_say_text(name, sizeof name, variable, len);
	for (int i = 0; i < HAK_OPTION_COUNT; i++) {
		unsigned d = hak_option_distance(name, rows[i].env);
		if (d < nearest && d < strlen(rows[i].name)) { /* not one of which no letter is left */
			nearest = d;
			near = &rows[i];
		}
	}
	hak_sayf("hakmem: %s: no such option%s%s%s; ignored\n", name, near ? ", did you mean " : "", near ? near->env : "",
	         near ? "?" : "");
}

static HAK_START void hak_option_init(void)
{
	extern char **environ;

	if (getauxval(AT_SECURE)) /* setuid: the environment is somebody else's */
		return;
	for (char **e = environ; e && *e; e++)
		/* Its first letters stand in the code: most processes have no page of constants then. */
		if ((*e)[0] == HAK_ENV_PREFIX[0] && (*e)[1] == HAK_ENV_PREFIX[1] && strncmp(*e, HAK_ENV_PREFIX, sizeof HAK_ENV_PREFIX - 1) == 0)
			hak_option_read(*e);
}

/* ================================================== size classes =============================================== */

static const struct hak_tier {
	const char *name;
	uint32_t least, most, steps, blocks, classes, stack, stacks;
} hak_tier[] = {
#define HAK_TIER_ROW(name, lo, hi, steps, blocks, classes, stack, stacks) {#name, lo, hi, steps, blocks, classes, stack, stacks},
	HAK_TIERS(HAK_TIER_ROW)
	{"whale", (uint32_t)HAK_CLASS_MAX + 1, UINT32_MAX, 0, 0, 0, 0, 0},
};

HAK_INLINE uint32_t hak_class_of(size_t n) /* n <= HAK_CLASS_MAX */
{
	if (n <= HAK_SMALL_MAX)
		return hak_class_small[n];
	if (n <= HAK_MID_MAX)
		return hak_class_mid[(n + 255) >> 8];
	return hak_class_big[(n + 8191) >> 13];
}

/* Units of a slab: the fewest that hold `least` blocks and waste a sixteenth at most. */
static HAK_START uint32_t hak_class_units(uint32_t size, uint32_t least)
{
	for (uint32_t units = 1;; units++) {
		uint32_t bytes = units << HAK_UNIT_SHIFT, blocks = bytes / size;
		if (blocks >= least && (bytes - blocks * size) * 16 <= bytes)
			return units;
	}
}

HAK_INLINE uint32_t hak_group_capacity(const hak_class_t *base) { return hak_min32(base->first, HAK_GROUP_STACK); }

/* Fills the class table, the three size tables and the layout of the stacks from the rows of HAK_TIERS. */
static HAK_START void hak_class_init(void)
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
			k->weight = size < HAK_REMOTE_AT_ONCE ? HAK_FILL_BYTES(size) | HAK_FILL_BLOCK : HAK_FILL_FULL;
			k->base = (uint8_t)(k - hak_class);
			k->tier = (uint8_t)t;
			k->units = (uint16_t)hak_class_units(size, tier->blocks);
			k->blocks = ((uint32_t)k->units << HAK_UNIT_SHIFT) / size;
			k->reciprocal = (((uint64_t)1 << 40) + size - 1) / size;
			k->cached = tier_on[t] != 0;
			k->plain = k->units == 1 && hak_option.hardened < 2;
			k->most = (uint16_t)hak_max32(hak_min32((tier->stack << 10) / size, HAK_STACK_MAX), 1);
			k->room = (uint16_t)hak_min32(hak_max32(hak_min32(HAK_STACK_FIRST_BYTES / size, HAK_STACK_FIRST), 4), k->most);
			k->first = hak_option.cache_first ? (uint16_t)hak_min32((uint32_t)hak_option.cache_first, k->most) : k->room;
			k->least = (uint16_t)hak_min32(hak_max32(k->room / HAK_STACK_SHRINK, 1), k->first);
			k->tight = (uint16_t)hak_min32(HAK_STACK_TIGHT_BYTES / size, k->least);
			k->batch = (uint16_t)hak_max32(hak_min32(HAK_BATCH_BYTES / size, HAK_BATCH_MOST), 1);
			k->small = (uint16_t)slot;
			slot += k->room + 1u;
			size += size < 16 ? 8 : hak_max32(octave / tier->steps, 16);
		}
	}
	hak_assert(c == HAK_CLASSES);
	/* The large regions come last: a page of them is touched only by a class that has outgrown its small one. */
	for (c = 0; c < HAK_CLASSES; c++) {
		hak_class[c].large = hak_class[c].small;
		if (hak_class[c].most > hak_class[c].room) {
			hak_class[c].large = (uint16_t)slot;
			slot += hak_class[c].most + 1u;
		}
	}
	hak_boot.group_slot = slot;
	for (c = 0; c < HAK_GROUPS * HAK_GROUP_CLASSES; c++)
		slot += hak_group_capacity(&hak_class[c % HAK_GROUP_CLASSES]) + 1u;
	hak_assert(slot <= UINT16_MAX);
	hak_boot.slots = slot;

	for (uint32_t i = 0, k = 0; i < sizeof hak_class_small; i++) {
		while (hak_class[k].size < i)
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

/* The groups, for the first rule.  A heap that is there already has no stacks for them, which is a stack of no room,
 * until its first refill. */
static HAK_COLD void hak_class_init_groups(void)
{
	uint32_t slot = hak_boot.group_slot;
	for (uint32_t c = HAK_CLASSES; c < HAK_CLASS_COUNT; c++) {
		hak_class_t *k = &hak_class[c];
		bool grouped = c < HAK_CLASS_UNCACHED;
		*k = hak_class[grouped ? (c - HAK_CLASSES) % HAK_GROUP_CLASSES : c - HAK_CLASS_UNCACHED];
		k->first = k->most = k->room = (uint16_t)(grouped ? hak_group_capacity(k) : 0);
		k->least = (uint16_t)hak_min32(k->least, k->first);
		k->tight = (uint16_t)hak_min32(k->tight, k->first);
		k->cached = k->cached && grouped;
		k->small = k->large = (uint16_t)(grouped ? slot : 0);
		slot += grouped ? k->first + 1u : 0;
	}
	hak_assert(slot == hak_boot.slots);
	hak_store_release(&hak_class_end, HAK_CLASS_COUNT);
}

/* ==================================================== targets ================================================== */

/* What slow paths go by where ACE may have learned better than the tables and options say.  Off, and in shadow, nobody
 * publishes anything.  A value holds from the next refill, batch or purge on: what is cached already stays as it is. */
HAK_INLINE uint64_t *hak_target_place(int policy, uint32_t c)
{
	return &hak_target.value[(uint32_t)policy + hak_min32((uint32_t)policy, HAK_POLICIES_FIRST) * (HAK_CLASSES - 1) + c];
}

HAK_INLINE uint64_t hak_target_read(int policy, uint32_t c) { return hak_load(hak_target_place(policy, c)); }
static HAK_START void hak_target_publish(int policy, uint32_t c, uint64_t value)
{
	hak_store(hak_target_place(policy, c), value);
}

HAK_INLINE uint32_t hak_target_batch(uint32_t c) { return (uint32_t)hak_target_read(HAK_POLICY_batch, c); }
HAK_INLINE uint32_t hak_target_capacity(uint32_t c) { return (uint32_t)hak_target_read(HAK_POLICY_capacity, c); } /* 0: none */
HAK_INLINE uint64_t hak_target_remote(void) { return hak_target_read(HAK_POLICY_remote, 0); }
HAK_INLINE uint64_t hak_target_retain(void) { return hak_target_read(HAK_POLICY_retain, 0); }
HAK_INLINE uint64_t hak_target_bigcache(void) { return hak_target_read(HAK_POLICY_bigcache, 0); } /* bytes of kept whales */
HAK_INLINE uint64_t hak_target_purge(void) { return hak_target_read(HAK_POLICY_purge, 0); }

/* Where a target begins, and goes back to: the class table, the geometry, the user's options. */
static HAK_START uint64_t hak_target_home(int policy, uint32_t c)
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

HAK_INLINE bool hak_policy_is_of_class(int policy) { return HAK_POLICIES_OF_CLASS >> policy & 1; }
HAK_INLINE uint32_t hak_policy_ends(int policy) { return hak_policy_is_of_class(policy) ? HAK_CLASSES : 1; }

#if HAK_DEBUG
/* For tests: publishes a target as ACE does.  It must be one that ACE could want. */
HAK_EXPORT void hak_debug_target(int policy, uint32_t c, uint64_t value) { hak_target_publish(policy, c, value); }
#endif

static HAK_START void hak_target_init(void)
{
	for (int policy = 0; policy < HAK_POLICY_COUNT; policy++)
		for (uint32_t c = 0; c < hak_policy_ends(policy); c++)
			hak_target_publish(policy, c, hak_target_home(policy, c));
}

/* =================================================== metadata ================================================== */

/* A mapping for metadata.  Hardened: with a guard before and behind, so that nothing runs into it from a neighbour. */
static HAK_START char *hak_meta_map(size_t len)
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

static HAK_COLD bool hak_meta_unmap(void *p, size_t len) /* the same; false: refused */
{
	size_t guard = HAK_HARDENED ? HAK_GUARD : 0;
	return hak_os_unmap((char *)p - guard, len + 2 * guard);
}

/* Zeroed memory that is never given back; NULL when there is none. */
static HAK_START void *hak_meta_alloc(size_t n)
{
	void *p = NULL;
	n = hak_round_up(n, 64);
	hak_lock(&hak_meta.lock);
	if (n > (size_t)(hak_meta.end - hak_meta.at)) {
		size_t least = hak_round_up(n + sizeof(hak_chunk_t), hak_boot.os_page);
		size_t chunk = n > (256 << 10) /* a heap struct */ ? least : (size_t)1 << 20;
		char *fresh = hak_meta_map(chunk);
		if (!fresh && chunk > least)
			fresh = hak_meta_map(chunk = least);
		if (!fresh)
			goto out;
		hak_meta.bytes += chunk;
		*(hak_chunk_t *)(void *)fresh = (hak_chunk_t){hak_meta.chunk, chunk};
		hak_meta.chunk = (hak_chunk_t *)(void *)fresh;
		fresh += sizeof(hak_chunk_t);
		chunk -= sizeof(hak_chunk_t);
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

/* The program may write over its environment. */
static HAK_START void hak_option_keep_texts(void)
{
	for (int i = 0; i < HAK_OPTION_COUNT; i++) {
		char *copy;
		if (!hak_option_texts[i])
			continue;
		if ((copy = hak_meta_alloc((size_t)*hak_option_place(i) + 1)))
			memcpy(copy, hak_option_texts[i], (size_t)*hak_option_place(i) + 1);
		else
			*hak_option_place(i) = 0;
		hak_option_texts[i] = copy;
	}
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

/* ===================================================== sites =================================================== */

/* A site is a number that a caller of hak_alloc_at gives, or, where sites are captured, the address that malloc returns
 * to.  Each has a row, in the order in which they were seen, and a bucket finds the row by hash.  Both only come, under
 * the lock; readers take none.  Sites for which there is no row left are counted in row 0.
 *
 * Rules stand in an array that only grows; one that is taken back says nothing any more.  What they say of a site
 * stands in its row, in one word with the generation of the rules: a row of another generation is matched anew by
 * whoever meets it next.  The names of modules and functions are asked of the dynamic linker then, while no lock of ours
 * is held, and by dl_iterate_phdr alone, whose lock is not held while constructors run. */
enum { HAK_RULE_NUMBER, HAK_RULE_OFFSET, HAK_RULE_SYMBOL };
enum { HAK_RETAIN_MOST = 3600000, HAK_SHARD_MOST = 65535, HAK_GENERATIONS = 1 << 20 };
#define HAK_POLICY_UNCACHED 4u
#define hak_policy_group(w) ((uint32_t)(w) & 3u) /* 0: none; short, long */
#define hak_policy_keep(w) ((w) >> 3 & 0x3FFFFF) /* ms for which a freed whale is kept, and 1; 0: no rule says */
#define hak_policy_shard(w) ((w) >> 25 & 0x1FFFF) /* the shard, and 1; 0: no rule says */
#define hak_policy_generation(w) ((uint32_t)((w) >> 44))
#define HAK_POLICY_KEEP(ms) (((uint64_t)(ms) + 1) << 3)
#define HAK_POLICY_SHARD(n) (((uint64_t)(n) + 1) << 25)
#define HAK_POLICY_GENERATION(n) ((uint64_t)(n) << 44)
static const char *const hak_group_names[] = {"", "short", "long"};

/* The class in which a site's blocks of class c stand. */
HAK_INLINE uint32_t hak_policy_class(uint64_t policy, uint32_t c)
{
	uint32_t group = hak_policy_group(policy);
	if (policy & HAK_POLICY_UNCACHED)
		return HAK_CLASS_UNCACHED + c;
	return group && c < HAK_GROUP_CLASSES ? HAK_CLASSES + (group - 1) * HAK_GROUP_CLASSES + c : c;
}

/* What a rule must have said for a block to stand in class c of a group. */
static HAK_COLD uint64_t hak_policy_of_class(uint32_t c)
{
	return c >= HAK_CLASS_UNCACHED ? HAK_POLICY_UNCACHED : (c - HAK_CLASSES) / HAK_GROUP_CLASSES + 1;
}

/* ---- the text of rules: WHERE:WHAT,WHAT;... */

static HAK_COLD bool hak_rule_number(const char *s, const char *end, uint64_t most, uint64_t *out)
{
	bool hex = end - s > 2 && s[0] == '0' && s[1] == 'x';
	uint64_t n = 0;
	if (hex)
		s += 2;
	if (s == end)
		return false;
	for (; s < end; s++) {
		int low = *s | 32;
		uint64_t digit = *s >= '0' && *s <= '9' ? (uint64_t)(*s - '0') : hex && low >= 'a' && low <= 'f' ? (uint64_t)(low - 'a' + 10) : 16;
		if (digit == 16 || __builtin_mul_overflow(n, hex ? 16u : 10u, &n) || __builtin_add_overflow(n, digit, &n))
			return false;
	}
	*out = n;
	return n <= most;
}

static HAK_COLD bool hak_rule_is_word(const char *s, const char *end, const char *word)
{
	return strlen(word) == (size_t)(end - s) && memcmp(s, word, (size_t)(end - s)) == 0;
}

/* The left side, written down in one form, so that the same site is the same text. */
static HAK_COLD bool hak_rule_parse_where(hak_rule_t *r, const char *s, const char *end)
{
	const char *plus = NULL;
	for (const char *at = s; at < end; at++) {
		if (*at <= ' ' || *at > '~')
			return false;
		if (end - at > 3 && memcmp(at, "+0x", 3) == 0)
			plus = at;
	}
	if (s == end || end - s > HAK_SITE_WHERE - 20)
		return false;
	if (hak_rule_number(s, end, UINT64_MAX, &r->id)) {
		r->kind = HAK_RULE_NUMBER;
		snprintf(r->where, sizeof r->where, "%llu", (unsigned long long)r->id);
		return r->id != 0;
	}
	r->kind = plus ? HAK_RULE_OFFSET : HAK_RULE_SYMBOL;
	r->length = (uint32_t)((plus ? plus : end) - s);
	if (plus) {
		snprintf(r->where, sizeof r->where, "%.*s+0x", (int)r->length, s);
		if (plus == s || !hak_rule_number(plus + 1, end, UINT64_MAX, &r->id))
			return false;
		snprintf(r->where + r->length, sizeof r->where - r->length, "+0x%llx", (unsigned long long)r->id);
		return true;
	}
	for (const char *at = s; at < end; at++) /* what a symbol is made of */
		if (!((*at | 32) >= 'a' && (*at | 32) <= 'z') && *at != '_' && *at != '.' && *at != '$'
		    && (at == s || *at < '0' || *at > '9'))
			return false;
	snprintf(r->where, sizeof r->where, "%.*s", (int)r->length, s);
	return true;
}

static HAK_COLD bool hak_rule_parse_what(uint64_t *policy, const char *s, const char *end)
{
	uint64_t group = 0, keep = 0, shard = 0, uncached = 0, n;
	bool none = false;
	for (const char *next;; s = next + 1) {
		if (!(next = memchr(s, ',', (size_t)(end - s))))
			next = end;
		const char *equals = memchr(s, '=', (size_t)(next - s)), *value = equals ? equals + 1 : next;
		if (!equals)
			equals = next;
		if (hak_rule_is_word(s, next, "nocache"))
			uncached = HAK_POLICY_UNCACHED;
		else if (hak_rule_is_word(s, next, "none"))
			none = true;
		else if (hak_rule_is_word(s, next, "lifetime=short"))
			group = 1;
		else if (hak_rule_is_word(s, next, "lifetime=long"))
			group = 2;
		else if (hak_rule_is_word(s, equals, "retain") && hak_rule_number(value, next, HAK_RETAIN_MOST, &n))
			keep = HAK_POLICY_KEEP(n);
		else if (hak_rule_is_word(s, equals, "shard") && hak_rule_number(value, next, HAK_SHARD_MOST, &n))
			shard = HAK_POLICY_SHARD(n);
		else
			return false;
		if (next == end)
			break;
	}
	*policy = group | keep | shard | uncached;
	return !(none && *policy) && !(uncached && group); /* blocks past the caches have slabs of their own already */
}

static HAK_COLD bool hak_rule_parse(hak_rule_t *r, const char *s, const char *end)
{
	const char *colon = memchr(s, ':', (size_t)(end - s));
	return colon && hak_rule_parse_where(r, s, colon) && hak_rule_parse_what(&r->policy, colon + 1, end);
}

/* ---- which code an address is */

typedef struct hak_spot {
	uintptr_t at;
	uintptr_t offset;               /* in the module, as the module's symbols have it */
	uintptr_t into;                 /* in the function */
	bool ask;                       /* for the function, too: it takes a look at all symbols of the module */
	char module[HAK_SITE_WHERE];    /* empty: none is there */
	char function[HAK_SITE_WHERE];  /* empty: no symbol that the module exports */
} hak_spot_t;

static HAK_COLD void hak_spot_name(char to[HAK_SITE_WHERE], const char *from)
{
	hak_say_text(to, HAK_SITE_WHERE, from, SIZE_MAX);
}

/* Some of the dynamic section's addresses are relative to where the module lies, others are not. */
static HAK_COLD const void *hak_spot_address(const struct dl_phdr_info *info, uintptr_t p)
{
	return (const void *)(p < info->dlpi_addr ? p + info->dlpi_addr : p);
}

static HAK_COLD uint32_t hak_spot_symbols(const uint32_t *hash, const uint32_t *gnu)
{
	uint32_t last = 0;
	if (hash)
		return hash[1];
	if (!gnu)
		return 0;
	const uint32_t *bucket = gnu + 4 + gnu[2] * (sizeof(uintptr_t) / 4), *chain = bucket + gnu[0];
	for (uint32_t i = 0; i < gnu[0]; i++)
		last = hak_max32(last, bucket[i]);
	if (last < gnu[1])
		return 0;
	while (!(chain[last - gnu[1]] & 1))
		last++;
	return last + 1;
}

static HAK_COLD void hak_spot_find_function(const struct dl_phdr_info *info, hak_spot_t *spot, const ElfW(Dyn) *d)
{
	const ElfW(Sym) *symbols = NULL, *best = NULL;
	const char *names = NULL;
	const uint32_t *hash = NULL, *gnu = NULL;
	uintptr_t at = spot->offset - 1; /* in the call: what comes after it may be another function */

	for (; d->d_tag != DT_NULL; d++) {
		const void *p = hak_spot_address(info, d->d_un.d_ptr);
		if (d->d_tag == DT_SYMTAB)
			symbols = p;
		else if (d->d_tag == DT_STRTAB)
			names = p;
		else if (d->d_tag == DT_HASH)
			hash = p;
		else if (d->d_tag == DT_GNU_HASH)
			gnu = p;
	}
	if (!symbols || !names)
		return;
	for (uint32_t i = 0, n = hak_spot_symbols(hash, gnu); i < n; i++) {
		const ElfW(Sym) *s = &symbols[i];
		if (s->st_shndx != SHN_UNDEF && (s->st_info & 15) == STT_FUNC && at - s->st_value < s->st_size
		    && (!best || s->st_value > best->st_value))
			best = s;
	}
	if (best) {
		hak_spot_name(spot->function, names + best->st_name);
		spot->into = spot->offset - best->st_value;
	}
}

static HAK_COLD int hak_spot_look(struct dl_phdr_info *info, size_t size, void *arg)
{
	hak_spot_t *spot = arg;
	const ElfW(Dyn) *dynamic = NULL;
	const char *slash;
	char program[4096];
	bool here = false;

	(void)size;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *h = &info->dlpi_phdr[i];
		here |= h->p_type == PT_LOAD && spot->at - 1 - (info->dlpi_addr + h->p_vaddr) < h->p_memsz;
		if (h->p_type == PT_DYNAMIC)
			dynamic = (const void *)(info->dlpi_addr + h->p_vaddr);
	}
	if (!here)
		return 0;
	const char *name = info->dlpi_name;
	if (!name || !*name) { /* the program itself */
		ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
		program[n > 0 ? n : 0] = '\0';
		name = program;
	}
	slash = strrchr(name, '/');
	hak_spot_name(spot->module, slash ? slash + 1 : name);
	spot->offset = spot->at - info->dlpi_addr;
	if (spot->ask && dynamic)
		hak_spot_find_function(info, spot, dynamic);
	return 1;
}

static HAK_COLD void hak_spot_find(hak_spot_t *spot, uintptr_t at, bool ask) /* no lock of ours is held */
{
	int saved = errno;
	spot->at = at;
	spot->ask = ask;
	spot->offset = spot->into = 0;
	spot->module[0] = spot->function[0] = '\0';
	dl_iterate_phdr(hak_spot_look, spot);
	errno = saved;
}

/* ---- the table of sites */

HAK_INLINE uint32_t hak_site_hash(uint64_t id) { return (uint32_t)(id * 0x9E3779B97F4A7C15u >> 32) % HAK_SITE_BUCKETS; }

static uint32_t hak_site_find(uint64_t id, bool code) /* the site's row; 0: it has none */
{
	const uint32_t *bucket = hak_load_acquire(&hak_sites.bucket);
	if (!bucket)
		return 0;
	for (uint32_t i = hak_site_hash(id), n;; i = (i + 1) % HAK_SITE_BUCKETS) {
		if (!(n = hak_load_acquire(&bucket[i])) || (hak_sites.row[n].id == id && hak_sites.row[n].code == code))
			return n;
	}
}

#define HAK_SITE_TABLE_BYTES \
	(HAK_SITES_MAX * (sizeof(hak_site_t) + HAK_SITE_COUNTS * sizeof(hak_site_count_t)) + HAK_SITE_BUCKETS * sizeof(uint32_t))

static HAK_COLD bool hak_site_map_locked(void) /* false: out of memory */
{
	size_t rows = HAK_SITES_MAX * sizeof(hak_site_t), counts = HAK_SITE_COUNTS * HAK_SITES_MAX * sizeof(hak_site_count_t);
	size_t len = HAK_SITE_TABLE_BYTES;
	char *p;
	if (hak_sites.bucket)
		return true;
	if (!(p = hak_meta_map(len)))
		return false;
	hak_add_shared(&hak_sites.bytes, len);
	hak_sites.row = (void *)p;
	hak_sites.count = (void *)(p + rows);
	hak_store_release(&hak_sites.made, 1u);
	hak_store_release(&hak_sites.bucket, (uint32_t *)(void *)(p + rows + counts));
	return true;
}

static HAK_COLD uint32_t hak_site_insert_locked(uint64_t id, bool code)
{
	uint32_t n = hak_site_find(id, code), i;
	if (n || hak_sites.made == HAK_SITES_MAX)
		return n;
	n = hak_sites.made;
	hak_sites.row[n].id = id;
	hak_sites.row[n].code = code;
	for (i = hak_site_hash(id); hak_load(&hak_sites.bucket[i]); i = (i + 1) % HAK_SITE_BUCKETS)
		;
	hak_store_release(&hak_sites.bucket[i], n);
	hak_store_release(&hak_sites.made, n + 1);
	return n;
}

static HAK_COLD uint32_t hak_site_meet_slow(uint64_t id, bool code)
{
	uint32_t n = 0;
	if (hak_load(&hak_sites.made) == HAK_SITES_MAX)
		return 0;
	hak_lock(&hak_sites.lock);
	if (hak_site_map_locked())
		n = hak_site_insert_locked(id, code);
	hak_unlock(&hak_sites.lock);
	return n;
}

static uint32_t hak_site_meet(uint64_t id, bool code) /* the site's row, made if it is new; 0: there is none left */
{
	uint32_t n = hak_site_find(id, code);
	return hak_likely(n != 0) ? n : hak_site_meet_slow(id, code);
}

/* What the rules say of a site; more exact ones count more. */
static HAK_COLD uint64_t hak_site_match_slow(hak_site_t *site, uint32_t generation)
{
	uint32_t count = hak_load_acquire(&hak_sites.rules);
	hak_spot_t spot = {.at = 0};
	uint64_t policy = 0;
	bool exact = false, ask = false;

	for (uint32_t i = 0; i < count; i++)
		ask |= hak_sites.rule[i].kind == HAK_RULE_SYMBOL;
	for (uint32_t i = 0; i < count && !exact; i++) {
		const hak_rule_t *r = &hak_sites.rule[i];
		uint64_t says = hak_load(&r->policy);
		if (!says || site->code != (r->kind != HAK_RULE_NUMBER))
			continue;
		if (site->code && !spot.at)
			hak_spot_find(&spot, (uintptr_t)site->id, ask);
		exact = r->kind == HAK_RULE_NUMBER ? r->id == site->id
		      : r->kind == HAK_RULE_OFFSET && r->id == spot.offset && strlen(spot.module) == r->length
		        && memcmp(spot.module, r->where, r->length) == 0;
		if (exact || (r->kind == HAK_RULE_SYMBOL && strcmp(spot.function, r->where) == 0))
			policy = says;
	}
	policy |= HAK_POLICY_GENERATION(generation);
	hak_store(&site->policy, policy);
	return policy;
}

static uint64_t hak_site_policy(uint32_t n)
{
	uint32_t now = hak_load_acquire(&hak_sites.generation);
	if (!n || !now)
		return 0;
	uint64_t policy = hak_load(&hak_sites.row[n].policy);
	if (hak_likely(hak_policy_generation(policy) == now))
		return policy;
	return hak_site_match_slow(&hak_sites.row[n], now);
}

/* ---- rules */

static HAK_COLD bool hak_rule_map_locked(void)
{
	size_t len = HAK_SITE_RULES * sizeof(hak_rule_t);
	if (!hak_sites.rule && (hak_sites.rule = (void *)hak_meta_map(len)))
		hak_add_shared(&hak_sites.bytes, len);
	return hak_sites.rule && hak_site_map_locked();
}

static HAK_COLD int hak_rule_enter_locked(const hak_rule_t *rule)
{
	uint32_t i = 0, count = hak_sites.rules;
	if (!hak_rule_map_locked())
		return HAK_ERR_NOMEM;
	while (i < count && strcmp(hak_sites.rule[i].where, rule->where) != 0)
		i++;
	if (i == HAK_SITE_RULES || (rule->kind == HAK_RULE_NUMBER && !hak_site_insert_locked(rule->id, false)))
		return HAK_ERR_MANY_RULES;
	if (hak_load_acquire(&hak_class_end) == HAK_CLASSES)
		hak_class_init_groups();
	if (i == count) {
		hak_sites.rule[i] = *rule;
		hak_store_release(&hak_sites.rules, count + 1);
	} else {
		hak_store(&hak_sites.rule[i].policy, rule->policy);
	}
	hak_store_release(&hak_sites.generation, hak_sites.generation % (HAK_GENERATIONS - 1) + 1);
	hak_store_release(&hak_sites.on, 1u);
	return HAK_ERR_OK;
}

static HAK_COLD int hak_rule_add(const char *s, const char *end)
{
	hak_rule_t rule = {.id = 0};
	int error;
	if (!hak_rule_parse(&rule, s, end))
		return HAK_ERR_RULE;
	if (rule.kind != HAK_RULE_NUMBER && !hak_option.sites)
		return HAK_ERR_NO_SITES;
	hak_lock(&hak_sites.lock);
	error = hak_rule_enter_locked(&rule);
	hak_unlock(&hak_sites.lock);
	return error;
}

/* Adds each rule of a text.  `say`: a bad one gets a line, and the others hold; else the first bad one ends it. */
static HAK_COLD int hak_rules_add(const char *text, bool say)
{
	char shown[120];
	for (const char *end; *text; text = *end ? end + 1 : end) {
		end = strchrnul(text, ';');
		int error = end == text ? HAK_ERR_OK : hak_rule_add(text, end);
		if (error && !say)
			return error;
		if (error)
			hak_sayf("hakmem: %s: %s: %s; ignored\n", hak_option_all()[HAK_OPTION_site_rules].env,
			         hak_say_text(shown, sizeof shown, text, (size_t)(end - text)), hak_error_says(error));
	}
	return HAK_ERR_OK;
}

static HAK_START void hak_site_init(void)
{
	if (hak_option.sites)
		hak_store(&hak_sites.on, 1u);
	if (hak_option_texts[HAK_OPTION_site_rules])
		hak_rules_add(hak_option_texts[HAK_OPTION_site_rules], true);
}

/* ---- the blocks of sites */

static hak_site_count_t *hak_site_counts(uint32_t n)
{
	if (!hak_load_acquire(&hak_sites.bucket))
		return &hak_sites.none;
	return &hak_sites.count[hak_own->id % HAK_SITE_COUNTS * HAK_SITES_MAX + n];
}

HAK_INLINE uint64_t hak_track_hash(uintptr_t block) { return block * 0x9E3779B97F4A7C15u; }
HAK_INLINE struct hak_track_share *hak_track_share_of(uintptr_t block) { return &hak_track[hak_track_hash(block) >> 58]; }
HAK_INLINE size_t hak_track_home(uintptr_t block, size_t places)
{
	return (hak_track_hash(block) >> 20) & (places - 1);
}

/* The place of a block, or the free one where it would stand. */
static size_t hak_track_find_locked(const struct hak_track_share *s, uintptr_t block)
{
	size_t i = hak_track_home(block, s->places);
	while (s->place[i].block && s->place[i].block != block)
		i = (i + 1) & (s->places - 1);
	return i;
}

static HAK_COLD void hak_track_grow_locked(struct hak_track_share *s) /* by as much again, if there is memory */
{
	struct hak_track_share old = *s;
	size_t places = s->places ? 2 * s->places : hak_boot.os_page / sizeof(hak_track_t);
	hak_track_t *place = (void *)hak_meta_map(places * sizeof *place);
	if (!place)
		return;
	s->place = place;
	s->places = places;
	for (size_t i = 0; i < old.places; i++)
		if (old.place[i].block)
			place[hak_track_find_locked(s, old.place[i].block)] = old.place[i];
	if (old.place)
		hak_meta_unmap(old.place, old.places * sizeof *place);
	hak_add_shared(&hak_sites.bytes, (places - old.places) * sizeof *place);
}

enum { HAK_TRACK_ADDED, HAK_TRACK_THERE, HAK_TRACK_REFUSED };
static int hak_track_add(uintptr_t block, uint64_t what)
{
	struct hak_track_share *s = hak_track_share_of(block);
	int done = HAK_TRACK_REFUSED;

	hak_lock(&s->lock);
	if (s->used >= s->places / 4 * 3)
		hak_track_grow_locked(s);
	if (s->places && s->used + 1 < s->places) { /* one place is free at least: there ends every search */
		hak_track_t *t = &s->place[hak_track_find_locked(s, block)];
		done = t->block ? HAK_TRACK_THERE : HAK_TRACK_ADDED;
		if (!t->block) {
			*t = (hak_track_t){block, what};
			s->used++;
		}
	}
	hak_unlock(&s->lock);
	return done;
}

static uint64_t hak_track_take(uintptr_t block) /* what was known of it; 0: nothing */
{
	struct hak_track_share *s = hak_track_share_of(block);
	uint64_t what = 0;

	hak_lock(&s->lock);
	size_t mask = s->places - 1, hole = s->places ? hak_track_find_locked(s, block) : 0;
	if (s->places && s->place[hole].block) {
		what = s->place[hole].what;
		/* Those behind move up, as far as they may stand before their place. */
		for (size_t i = (hole + 1) & mask; s->place[i].block; i = (i + 1) & mask)
			if (((i - hak_track_home(s->place[i].block, s->places)) & mask) >= ((i - hole) & mask)) {
				s->place[hole] = s->place[i];
				hole = i;
			}
		s->place[hole].block = 0;
		s->used--;
	}
	hak_unlock(&s->lock);
	return what;
}

#define HAK_TRACK_SITE 0x1FFFFu /* the low bits of what: a row's number, and 1 */
#define hak_track_what(n, bytes) ((uint64_t)(bytes) << 17 | ((n) + 1))
#define hak_track_row(what) ((uint32_t)((what) & HAK_TRACK_SITE) - 1)
_Static_assert(HAK_SITES_MAX < HAK_TRACK_SITE, "a row's number has 17 bits");

static void hak_site_count_live(uint64_t what, bool more)
{
	hak_site_count_t *c = hak_site_counts(hak_track_row(what));
	hak_add_shared(&c->live, more ? 1u : -1ull);
	hak_add_shared(&c->live_bytes, more ? what >> 17 : -(what >> 17));
}

/* A block has been handed out for the site of row n.  A block that is known already stays as it is. */
static void hak_site_note(uint32_t n, const void *p, size_t bytes)
{
	uint64_t what = hak_track_what(n, bytes);
	if (hak_option.sites) {
		int done = hak_track_add((uintptr_t)p, what);
		if (done == HAK_TRACK_THERE)
			return;
		if (done == HAK_TRACK_ADDED)
			hak_site_count_live(what, true);
		else
			hak_add_shared(&hak_sites.untracked, 1u);
	}
	hak_site_count_t *c = hak_site_counts(n);
	hak_add_shared(&c->allocs, 1u);
	hak_add_shared(&c->bytes, bytes);
}

static uint64_t hak_site_forget(const void *p) /* before p is freed.  What was known of it */
{
	uint64_t what = hak_track_take((uintptr_t)p);
	if (what)
		hak_site_count_live(what, false);
	return what;
}

/* A block that was to be moved is where it was. */
static HAK_COLD void hak_site_remember(const void *p, uint64_t what)
{
	if (!what)
		return;
	if (hak_track_add((uintptr_t)p, what) == HAK_TRACK_ADDED)
		hak_site_count_live(what, true);
	else
		hak_add_shared(&hak_sites.untracked, 1u);
}

/* =============================================== index of segments ============================================= */

/* With use_registry: where each segment lies.  Whoever makes or ends one writes it down, under the lock that guards the
 * segment's words (whales: their bucket) and then that of the index, so that what the index says is what they say.  A
 * reader takes no lock: it reads `turn` before and after, and if somebody wrote in between it looks again under the lock.
 *
 * Registry: a table of entries by the hash of a granule of addresses, open addressing, at most half full.  A segment has
 * an entry for each granule that it touches, and the longer it is the larger are its granules (64 KiB for up to 1 MiB,
 * 1 MiB for up to 16 MiB, and so on), so that there are 17 of them at most and a slab of one unit has one.  An address is
 * looked for in its granule of each size that is in use: one probe for slabs, eight at the very most.
 *
 * Scan: a dense array in the order in which segments came; the last takes the place of one that ends.
 *
 * Memory may be refused: then a segment has no entry, `missing` says so, and who finds nothing asks the words. */

HAK_INLINE uint32_t hak_granule_shift(uint32_t size) { return HAK_UNIT_SHIFT + HAK_GRANULE_STEP * size; }

HAK_INLINE uint32_t hak_granule_size(size_t len) /* the least of which 16 are as long */
{
	uint32_t bits = 64u - (uint32_t)__builtin_clzll(len | 1) - ((len & (len - 1)) == 0), least = hak_granule_shift(1);
	return bits <= least ? 0 : (bits - least + HAK_GRANULE_STEP - 1) / HAK_GRANULE_STEP;
}

HAK_INLINE size_t hak_granule_home(const hak_entries_t *t, uintptr_t granule, uint32_t size)
{
	/* 2^64 by the golden ratio: neighbours come to lie far from one another, and evenly, in the upper bits. */
	return (size_t)(((uint64_t)granule ^ (uint64_t)size << 60) * 0x9E3779B97F4A7C15ull >> t->shift);
}

HAK_INLINE size_t hak_entry_home(const hak_entries_t *t, const hak_entry_t *e)
{
	uint32_t size = hak_granule_size(e->len);
	return hak_granule_home(t, (e->base >> hak_granule_shift(size)) + (e->base & HAK_GRANULE_BITS), size);
}

HAK_INLINE void hak_entry_write_locked(hak_entry_t *e, uintptr_t base, size_t len) /* release: not before turn is odd */
{
	hak_store_release(&e->base, base);
	hak_store_release(&e->len, len);
}

/* The segment around p.  0: there is none, or somebody writes. */
HAK_INLINE size_t hak_registry_find(const void *p, uintptr_t *base)
{
	uint32_t sizes = hak_load_acquire(&hak_index.sizes); /* first: where one is in use there is a table */
	const hak_entries_t *t = hak_load_acquire(&hak_index.table);
	for (; sizes; sizes &= sizes - 1) {
		uint32_t size = (uint32_t)__builtin_ctz(sizes);
		size_t i = hak_granule_home(t, (uintptr_t)p >> hak_granule_shift(size), size);
		for (size_t left = t->size, len; left && (len = hak_load_acquire(&t->at[i].len)); left--, i = (i + 1) & (t->size - 1)) {
			*base = hak_load_acquire(&t->at[i].base) & ~(uintptr_t)HAK_GRANULE_BITS;
			if ((uintptr_t)p - *base < len)
				return len;
		}
	}
	return 0;
}

HAK_INLINE size_t hak_scan_find(const void *p, uintptr_t *base)
{
	const hak_entries_t *t = hak_load_acquire(&hak_index.table);
	uint64_t used = hak_load_acquire(&hak_index.used);
	if (!t || used > t->size) /* the table is not yet the new one */
		return 0;
	for (uint64_t i = 0; i < used; i++) {
		size_t len = hak_load_acquire(&t->at[i].len);
		*base = hak_load_acquire(&t->at[i].base);
		if ((uintptr_t)p - *base < len)
			return len;
	}
	return 0;
}

HAK_INLINE size_t hak_index_find_locked(const void *p, uintptr_t *base, int64_t way)
{
	return way == HAK_BY_SCAN ? hak_scan_find(p, base) : hak_registry_find(p, base);
}

/* The segment around p as the index knows it.  0: there is none. */
HAK_INLINE size_t hak_index_find(const void *p, uintptr_t *base, int64_t way)
{
	uint64_t turn = hak_load_acquire(&hak_index.turn);
	size_t len;
	if (hak_likely(HAK_PEEKS && !(turn & 1))) {
		len = hak_index_find_locked(p, base, way);
		if (hak_likely(hak_load(&hak_index.turn) == turn))
			return len;
	}
	hak_lock_uncounted(&hak_index.lock);
	len = hak_index_find_locked(p, base, way);
	hak_unlock(&hak_index.lock);
	return len;
}

static void hak_registry_put_locked(hak_entries_t *t, uintptr_t base, size_t len) /* base: with its granule */
{
	hak_entry_t e = {base, len};
	size_t i = hak_entry_home(t, &e);
	while (t->at[i].len)
		i = (i + 1) & (t->size - 1);
	hak_entry_write_locked(&t->at[i], base, len);
}

/* Entries behind the one that leaves move up, so that none is cut off from its home by an empty one. */
static void hak_registry_take_locked(hak_entries_t *t, uintptr_t base, size_t len)
{
	hak_entry_t e = {base, len};
	size_t mask = t->size - 1, i = hak_entry_home(t, &e), next;
	while (t->at[i].base != base)
		i = (i + 1) & mask;
	for (next = (i + 1) & mask; t->at[next].len; next = (next + 1) & mask)
		if (((next - hak_entry_home(t, &t->at[next])) & mask) >= ((next - i) & mask)) {
			hak_entry_write_locked(&t->at[i], t->at[next].base, t->at[next].len);
			i = next;
		}
	hak_entry_write_locked(&t->at[i], 0, 0);
}

/* Room for n more entries.  False: no memory. */
static HAK_COLD bool hak_index_grow_locked(uint64_t n, bool registry)
{
	hak_entries_t *old = hak_index.table, *t;
	size_t size = old ? old->size * 2 : HAK_INDEX_FIRST, bytes = sizeof *t + size * sizeof *t->at;
	int saved = errno;

	if (!(t = hak_meta_alloc(bytes))) {
		errno = saved;
		return old && registry && hak_index.used + n <= old->size - old->size / 8; /* slower, but there */
	}
	t->size = size;
	t->shift = 64u - (uint32_t)__builtin_ctzll(size);
	for (size_t i = 0; old && i < old->size; i++)
		if (registry && old->at[i].len)
			hak_registry_put_locked(t, old->at[i].base, old->at[i].len);
		else if (!registry)
			hak_entry_write_locked(&t->at[i], old->at[i].base, old->at[i].len);
	hak_index.bytes += bytes;
	hak_store_release(&hak_index.table, t);
	return true;
}

static void hak_index_count_locked(uint32_t size, uint64_t n) /* registry: n segments more of that size of granules */
{
	uint32_t bit = 1u << size;
	hak_index.of_size[size] += n;
	hak_store_release(&hak_index.sizes, (hak_index.sizes & ~bit) | (hak_index.of_size[size] ? bit : 0));
}

static void hak_index_enter_locked(uintptr_t base, size_t len, bool registry)
{
	uint32_t size = hak_granule_size(len), shift = hak_granule_shift(size);
	uint64_t n = registry ? ((base + len - 1) >> shift) - (base >> shift) + 1 : 1;
	hak_entries_t *t = hak_index.table;

	if (!t || (hak_index.used + n) << registry > t->size) {
		if (!hak_index_grow_locked(n, registry)) {
			hak_index.refusals++;
			hak_store(&hak_index.missing, hak_index.missing + 1);
			return;
		}
		t = hak_index.table;
	}
	for (uint64_t i = 0; registry && i < n; i++)
		hak_registry_put_locked(t, base + i, len);
	if (registry)
		hak_index_count_locked(size, 1);
	else
		hak_entry_write_locked(&t->at[hak_index.used], base, len);
	hak_store_release(&hak_index.used, hak_index.used + n);
	hak_index.segments++;
}

static void hak_index_leave_locked(uintptr_t base, bool registry)
{
	hak_entries_t *t = hak_index.table;
	uintptr_t start = 0;
	uint64_t n = 1, i = 0;
	size_t len = 0;

	if (!registry) {
		while (i < hak_index.used && t->at[i].base != base)
			i++;
		len = i < hak_index.used ? t->at[i].len : 0;
	} else if (t) {
		len = hak_registry_find((const void *)base, &start);
		hak_assert(!len || start == base);
	}
	if (!len) { /* it has never been there */
		hak_assert(hak_index.missing);
		hak_store(&hak_index.missing, hak_index.missing - 1);
		return;
	}
	if (registry) {
		uint32_t size = hak_granule_size(len), shift = hak_granule_shift(size);
		n = ((base + len - 1) >> shift) - (base >> shift) + 1;
		for (i = 0; i < n; i++)
			hak_registry_take_locked(t, base + i, len);
		hak_index_count_locked(size, -1ull);
	} else {
		const hak_entry_t *last = &t->at[hak_index.used - 1];
		hak_entry_write_locked(&t->at[i], last->base, last->len);
		hak_entry_write_locked(&t->at[hak_index.used - 1], 0, 0);
	}
	hak_store_release(&hak_index.used, hak_index.used - n);
	hak_index.segments--;
}

/* The segment at base ends, if `ends`; and where it is, one of `len` bytes begins and behind it one of `rest` (0: none). */
static HAK_NOINLINE void hak_index_change_slow(const void *base, bool ends, size_t len, size_t rest)
{
	bool registry = hak_option.use_registry == HAK_BY_REGISTRY;
	uintptr_t at = (uintptr_t)base;

	hak_lock(&hak_index.lock);
	hak_store(&hak_index.turn, hak_index.turn + 1);
	if (ends)
		hak_index_leave_locked(at, registry);
	if (len)
		hak_index_enter_locked(at, len, registry);
	if (rest)
		hak_index_enter_locked(at + len, rest, registry);
	hak_store_release(&hak_index.turn, hak_index.turn + 1);
	hak_unlock(&hak_index.lock);
}

HAK_INLINE void hak_index_change(const void *base, bool ends, size_t len, size_t rest)
{
	if (hak_unlikely(hak_option.use_registry != HAK_BY_ADDRESS))
		hak_index_change_slow(base, ends, len, rest);
}

HAK_INLINE void hak_index_enter(const void *base, size_t len) { hak_index_change(base, false, len, 0); }
HAK_INLINE void hak_index_leave(const void *base) { hak_index_change(base, true, 0, 0); }
HAK_INLINE void hak_index_resize(const void *base, size_t len) { hak_index_change(base, true, len, 0); }
HAK_INLINE void hak_index_cut(const void *base, size_t len, size_t rest) { hak_index_change(base, true, len, rest); }

/* =================================================== BigCache ================================================== */

/* A block above 1 MiB that is freed stays whole, and goes to the next request of its site and size class: no run is
 * looked for, split and joined, and no mapping made.  Keys stand in a hash table of chains; each has its blocks, the
 * newest first.  What is kept counts as free dirty memory where that is bounded, ages like it, and is joined with it
 * before clean memory is taken (hak_run_unkeep_for_locked): it hardly makes the process larger. */

HAK_INLINE uint32_t hak_big_site(uint64_t site) { return (uint32_t)(site ^ site >> 32); }

/* The class of the longest block that is not longer than n: up to 64 MiB its units, so that no memory lies behind a
 * block that nobody asked for, and above so many classes to each doubling. */
HAK_INLINE uint32_t hak_big_class(size_t n)
{
	uint64_t units = n >> HAK_UNIT_SHIFT;
	if (units <= HAK_RUN_UNITS)
		return (uint32_t)units;
	uint32_t shift = 63u - (uint32_t)__builtin_clzll(units) - (uint32_t)__builtin_ctz(HAK_BIG_STEPS);
	return HAK_RUN_UNITS + shift * HAK_BIG_STEPS + (uint32_t)(units >> shift);
}

static HAK_COLD uint64_t hak_big_class_size(uint32_t c) /* bytes of its shortest block */
{
	if (c <= HAK_RUN_UNITS)
		return (uint64_t)c << HAK_UNIT_SHIFT;
	c -= HAK_RUN_UNITS;
	uint32_t shift = c / HAK_BIG_STEPS - 1;
	return (uint64_t)(c - shift * HAK_BIG_STEPS) << shift << HAK_UNIT_SHIFT;
}

/* FNV-1a. */
HAK_INLINE uint32_t hak_big_hash(uint32_t site, uint32_t class)
{
	uint64_t key = (uint64_t)site << 32 | class;
	uint32_t hash = 2166136261u;
	for (int i = 0; i < 8; i++, key >>= 8)
		hash = (hash ^ (uint32_t)(key & 255)) * 16777619u;
	return hash;
}

HAK_INLINE hak_slab_t *hak_big_run(hak_big_t *b) { return (hak_slab_t *)(void *)((char *)b - offsetof(hak_slab_t, big)); }
HAK_INLINE hak_whale_t *hak_big_whale(hak_big_t *b) { return (hak_whale_t *)(void *)((char *)b - offsetof(hak_whale_t, big)); }
HAK_INLINE char *hak_big_base(hak_big_t *b) { return b->kind == HAK_BIG_RUN ? hak_big_run(b)->base : hak_big_whale(b)->base; }

static hak_big_key_t *hak_big_key_find_locked(uint32_t site, uint32_t class) /* NULL: not known */
{
	hak_big_key_t *k = NULL;
	if (hak_bigcache.buckets)
		k = hak_bigcache.bucket[hak_big_hash(site, class) & (hak_bigcache.buckets - 1)];
	while (k && (k->site != site || k->class != class))
		k = k->next;
	return k;
}

/* Takes a key without a block out of the table: there is one. */
static HAK_COLD hak_big_key_t *hak_big_key_recycle_locked(void)
{
	for (;; hak_bigcache.hand++)
		for (hak_big_key_t **at = &hak_bigcache.bucket[hak_bigcache.hand & (hak_bigcache.buckets - 1)], *k; (k = *at); at = &k->next)
			if (!k->entries) {
				*at = k->next;
				hak_bigcache.keys--;
				hak_bigcache.idle--;
				return k;
			}
}

/* Doubles the table.  Refused: it stays as it is, chains grow longer, and some keys later it is tried again. */
static HAK_COLD void hak_big_grow_locked(void)
{
	uint32_t old = hak_bigcache.buckets, n = old * 2;
	size_t len = hak_round_up(n * sizeof(hak_big_key_t *), hak_boot.os_page);
	hak_big_key_t **to = (hak_big_key_t **)(void *)hak_meta_map(len), **from = hak_bigcache.bucket;

	hak_bigcache.grow_at += to ? 0 : old / 4;
	if (!to)
		return;
	for (uint32_t i = 0; i < old; i++)
		for (hak_big_key_t *k = from[i], *next; k; k = next) {
			hak_big_key_t **at = &to[hak_big_hash(k->site, k->class) & (n - 1)];
			next = k->next;
			k->next = *at;
			*at = k;
		}
	hak_bigcache.bucket = to;
	hak_bigcache.buckets = n;
	hak_bigcache.grow_at = n < HAK_BIG_BUCKETS_MOST ? n / 4 * 3 : UINT32_MAX;
	hak_bigcache.table_bytes += len;
	len = hak_round_up(old * sizeof(hak_big_key_t *), hak_boot.os_page);
	if (from != hak_bigcache.first && hak_meta_unmap(from, len))
		hak_bigcache.table_bytes -= len;
}

static HAK_COLD hak_big_key_t *hak_big_key_make_locked(uint32_t site, uint32_t class) /* NULL: out of memory */
{
	hak_big_key_t *k = NULL, **at;

	if (!hak_bigcache.buckets) {
		hak_bigcache.bucket = hak_bigcache.first;
		hak_bigcache.buckets = HAK_BIG_BUCKETS;
		hak_bigcache.grow_at = HAK_BIG_BUCKETS / 4 * 3;
	}
	if (hak_bigcache.idle < HAK_BIG_IDLE)
		k = hak_meta_alloc(sizeof *k);
	if (!k && hak_bigcache.idle)
		k = hak_big_key_recycle_locked();
	if (!k)
		return NULL;
	if (hak_bigcache.keys >= hak_bigcache.grow_at)
		hak_big_grow_locked();
	at = &hak_bigcache.bucket[hak_big_hash(site, class) & (hak_bigcache.buckets - 1)];
	*k = (hak_big_key_t){.next = *at, .site = site, .class = class};
	*at = k;
	hak_bigcache.keys++;
	hak_bigcache.idle++;
	return k;
}

static void hak_big_stamp_locked(void)
{
	uint64_t stamp = UINT64_MAX;
	for (int kind = 0; kind < HAK_BIG_KINDS; kind++)
		if (hak_bigcache.oldest[kind] && hak_bigcache.oldest[kind]->stamp < stamp)
			stamp = hak_bigcache.oldest[kind]->stamp;
	hak_store(&hak_bigcache.stamp, stamp);
}

/* Units of a shard come into BigCache, or leave it.  Runs only. */
static void hak_big_count_locked(hak_big_t *b, bool more)
{
	uint32_t shard = hak_load(&hak_super[hak_big_run(b)->unit / HAK_SUPER_UNITS]->shard); /* it stands while b is in use */
	uint64_t n = b->len >> HAK_UNIT_SHIFT, bit = 1ull << shard;
	hak_count(&hak_bigcache.units[shard], more ? n : -n);
	hak_store(&hak_bigcache.shards, hak_bigcache.units[shard] ? hak_bigcache.shards | bit : hak_bigcache.shards & ~bit);
}

static void hak_big_insert_locked(hak_big_t *b, hak_big_key_t *k, uint64_t kind, size_t len, uint64_t stamp)
{
	hak_big_t *older = hak_bigcache.newest[kind];
	while (older && older->stamp > stamp) /* a rule has said how long it is kept, or that it is not */
		older = older->older;
	*b = (hak_big_t){.next = k->first, .older = older, .newer = older ? older->newer : hak_bigcache.oldest[kind], .key = k,
		.len = len, .stamp = stamp, .kind = kind};
	if (k->first)
		k->first->prev = b;
	k->first = b;
	*(b->older ? &b->older->newer : &hak_bigcache.oldest[kind]) = b;
	*(b->newer ? &b->newer->older : &hak_bigcache.newest[kind]) = b;
	hak_bigcache.idle -= k->entries == 0 && k != &hak_bigcache.odd;
	k->entries++;
	k->bytes += len;
	hak_count(&hak_bigcache.entries[kind], 1u);
	hak_count(&hak_bigcache.bytes[kind], len);
	if (kind == HAK_BIG_RUN)
		hak_big_count_locked(b, true);
	hak_big_stamp_locked();
}

static void hak_big_remove_locked(hak_big_t *b)
{
	hak_big_key_t *k = b->key;
	*(b->prev ? &b->prev->next : &k->first) = b->next;
	if (b->next)
		b->next->prev = b->prev;
	*(b->older ? &b->older->newer : &hak_bigcache.oldest[b->kind]) = b->newer;
	*(b->newer ? &b->newer->older : &hak_bigcache.newest[b->kind]) = b->older;
	k->entries--;
	k->bytes -= b->len;
	hak_bigcache.idle += k->entries == 0 && k != &hak_bigcache.odd;
	hak_count(&hak_bigcache.entries[b->kind], -1ull);
	hak_count(&hak_bigcache.bytes[b->kind], -(uint64_t)b->len);
	if (b->kind == HAK_BIG_RUN)
		hak_big_count_locked(b, false);
	b->key = NULL;
	hak_big_stamp_locked();
}

/* Requests for the key of late: in this period, and half as many of each before it. */
static uint32_t hak_big_use_locked(hak_big_key_t *k)
{
	uint32_t period = (uint32_t)((hak_bigcache.hits + hak_bigcache.misses) >> HAK_BIG_PERIOD), age = period - k->period;
	k->use = age < 32 ? k->use >> age : 0;
	k->period = period;
	return k->use;
}

/* Whether runs of the key are worth keeping: its size comes again and again.  Kept runs of sizes that hardly do, as
 * random ones, would stand in the way of the others: free memory that does not join costs more than hits bring. */
static bool hak_big_is_wanted_locked(hak_big_key_t *k)
{
	uint64_t all = hak_bigcache.hits + hak_bigcache.misses;
	return hak_big_use_locked(k) * HAK_BIG_SHARE >= (all < 2 << HAK_BIG_PERIOD ? all : 2 << HAK_BIG_PERIOD);
}

/* Keeps a block that was just freed.  False: it is not to be kept, or there is no memory for its key.  A block that
 * must be kept, since the system does not take it back, is. */
static bool hak_big_put(hak_big_t *b, uint64_t kind, size_t len, uint32_t site, uint64_t stamp, bool must)
{
	uint32_t class = hak_big_class(len);
	hak_big_key_t *k = NULL;

	if (!must && (uint64_t)hak_load(&hak_option.bigcache) < len)
		return false;
	hak_lock(&hak_bigcache.lock);
	if (!(k = hak_big_key_find_locked(site, class)) && !(k = hak_big_key_make_locked(site, class)) && must)
		k = &hak_bigcache.odd;
	if (k && kind == HAK_BIG_RUN && !hak_big_is_wanted_locked(k))
		k = NULL;
	if (k) {
		if (kind == HAK_BIG_RUN) {
			hak_bigcache.run_frees++;
			hak_bigcache.run_freed_bytes += len;
			hak_gauge_add(HAK_TIER_whale, -(int64_t)len); /* under the lock, so that a child of fork finds it done or not */
		}
		hak_big_insert_locked(b, k, kind, len, stamp);
	}
	hak_unlock(&hak_bigcache.lock);
	return k != NULL;
}

/* A kept block for a request of n bytes: long enough and aligned, and at most an eighth longer.  A run is live again.
 * NULL: there is none. */
static hak_big_t *hak_big_take(size_t n, size_t align, uint32_t site, bool mapped)
{
	/* With an index of segments, or units that nobody may touch, no run is kept whole. */
	bool on = hak_load(&hak_option.bigcache) && (n > HAK_RUN_MAX || (!hak_option.use_registry && hak_option.hardened < 2));
	uint32_t first = hak_big_class(n), last;
	size_t most = n + n / HAK_BIG_SLACK;
	hak_big_key_t *own = NULL;
	hak_big_t *b = NULL;

	if (!on && hak_load(&hak_bigcache.stamp) == UINT64_MAX)
		return NULL;
	last = first <= HAK_RUN_UNITS ? first : hak_big_class(most);
	hak_lock(&hak_bigcache.lock);
	for (uint32_t c = first; c <= last && !b; c++) {
		hak_big_key_t *k = hak_big_key_find_locked(site, c);
		uint32_t looked = 0;
		own = c == first ? k : own;
		for (b = k ? k->first : NULL; b; b = b->next, looked++) {
			if (looked == HAK_BIG_LOOKED)
				b = NULL;
			if (!b || (b->len >= n && b->len <= most && (!mapped || b->kind == HAK_BIG_WHALE) && ((uintptr_t)hak_big_base(b) & (align - 1)) == 0))
				break;
		}
	}
	if (b) {
		b->key->hits++;
		hak_big_remove_locked(b);
		hak_bigcache.hits++;
		if (b->kind == HAK_BIG_RUN) {
			hak_bigcache.run_allocs++;
			hak_bigcache.run_alloc_bytes += b->len;
			hak_gauge_add(HAK_TIER_whale, (int64_t)b->len);
			hak_store(&hak_unit[hak_big_run(b)->unit], HAK_RUN_HEAD);
		}
	} else if (on) {
		hak_bigcache.misses++;
		if (own || (own = hak_big_key_make_locked(site, first)))
			own->misses++;
	}
	if (own)
		own->use = hak_big_use_locked(own) + 1;
	hak_unlock(&hak_bigcache.lock);
	return b;
}

HAK_INLINE uint64_t hak_big_units(void) /* of the page heap's, those in BigCache */
{
	return hak_load(&hak_bigcache.bytes[HAK_BIG_RUN]) >> HAK_UNIT_SHIFT;
}

/* Whether something is kept that is older than it may grow. */
HAK_INLINE bool hak_big_is_old(uint64_t now)
{
	uint64_t stamp = hak_load(&hak_bigcache.stamp);
	return stamp != UINT64_MAX && now > stamp + hak_target_purge();
}

/* ==================================================== shards =================================================== */

HAK_INLINE hak_super_t *hak_super_of(uint32_t u) { return hak_super[u / HAK_SUPER_UNITS]; }
HAK_INLINE hak_slab_t *hak_slab_of(uint32_t u) { return &hak_super_of(u)->unit[u % HAK_SUPER_UNITS]; }

HAK_INLINE uint32_t hak_shard_number(const hak_shard_t *shard) { return (uint32_t)(shard - hak_page.shard); }
HAK_INLINE uint64_t hak_shard_bit(const hak_shard_t *shard) { return 1ull << hak_shard_number(shard); }

/* The sum over the shards of something that is counted of each.  They are in use while it is taken. */
#define hak_shard_sum(field)                                                 \
	({                                                                       \
		uint64_t sum_ = 0;                                                   \
		for (uint32_t i_ = 0, n_ = hak_load(&hak_page.shards); i_ < n_; i_++) \
			sum_ += hak_load(&hak_page.shard[i_].count.field);               \
		sum_;                                                                \
	})

static HAK_START void hak_shard_init(void)
{
	uint32_t n = 1;
	while (n < (uint32_t)hak_option.shards)
		n *= 2;
	hak_store(&hak_page.shards, n);
}

/* The shard that serves a call site, or a heap where the site is 0. */
static hak_shard_t *hak_shard_for(uint64_t site, uint32_t heap)
{
	uint32_t mask = hak_load(&hak_page.shards) - 1;
	return &hak_page.shard[(site ? (uint32_t)(site >> 4) : heap) & mask];
}

/* The shard that a rule names, as far as there are so many. */
static hak_shard_t *hak_shard_numbered(uint32_t number)
{
	return &hak_page.shard[number & (hak_load(&hak_page.shards) - 1)];
}

/* The shard of a unit.  For one in use it stands: a superslab changes its shard only while all of it is free. */
HAK_INLINE hak_shard_t *hak_shard_of(uint32_t u)
{
	return &hak_page.shard[hak_load(&hak_super_of(u)->shard) % HAK_SHARDS_MAX];
}

/* Locks the shard of a unit, which somebody may free meanwhile. */
static hak_shard_t *hak_shard_lock(uint32_t u)
{
	for (;;) {
		hak_shard_t *shard = hak_shard_of(u);
		hak_lock(&shard->lock);
		if (hak_likely(hak_shard_of(u) == shard))
			return shard;
		hak_unlock(&shard->lock);
	}
}

/* Likewise, in place of the one that is held, if any. */
static hak_shard_t *hak_shard_switch(hak_shard_t *held, uint32_t u)
{
	if (held && hak_shard_of(u) == held)
		return held;
	if (held)
		hak_unlock(&held->lock);
	return hak_shard_lock(u);
}

/* Locks `other` beside `own`, which is held: in the order of their numbers, so that own may be let go for a moment. */
static void hak_shard_lock_beside(hak_shard_t *own, hak_shard_t *other)
{
	if (other < own)
		hak_unlock(&own->lock);
	hak_lock(&other->lock);
	if (other < own)
		hak_lock(&own->lock);
}

/* Takes one out of a set of other shards, the first behind `own`: so that all do not go to the same.  NULL: it was
 * empty. */
static hak_shard_t *hak_shard_pick(uint64_t *set, const hak_shard_t *own)
{
	uint64_t behind = *set & ~(2 * hak_shard_bit(own) - 1);
	uint32_t i;
	if (!*set)
		return NULL;
	i = (uint32_t)__builtin_ctzll(behind ? behind : *set);
	*set &= ~(1ull << i);
	return &hak_page.shard[i];
}

/* A bit of a bitmap over the shards.  The shard's lock: nobody else writes this bit. */
static void hak_shard_mark_locked(const hak_shard_t *shard, uint64_t *map, bool on)
{
	uint64_t bit = hak_shard_bit(shard);
	if (hak_likely(((hak_load(map) & bit) != 0) == on))
		return;
	if (on)
		hak_or_shared(map, bit);
	else
		hak_and_shared(map, ~bit);
}

static uint64_t hak_shard_contended(void)
{
	uint64_t sum = 0;
	for (uint32_t i = 0, n = hak_load(&hak_page.shards); i < n; i++)
		sum += hak_load(&hak_page.shard[i].lock.contended);
	return sum;
}

/* Twice as many shards, if there still is reason to.  The new ones have nothing: what heaps want from them they take
 * from the others or from the system.  Under the purge lock, so that fork and purge know how many there are. */
static HAK_COLD void hak_shard_grow(uint64_t threshold, uint64_t now)
{
	if (!hak_lock_try(&hak_page.purging))
		return;
	if (hak_shard_contended() >= hak_load(&hak_page.waits) + threshold && hak_page.shards < HAK_SHARDS_MAX) {
		hak_store(&hak_page.waits, hak_shard_contended());
		hak_store(&hak_page.waits_stamp, now);
		hak_store(&hak_page.shards, 2 * hak_page.shards);
		hak_count(&hak_page.growths, 1u);
	}
	hak_unlock(&hak_page.purging);
}

/* Whether threads have waited for each other so often in a second, or since the last growth, that there should be more
 * shards.  Waits that come now and then never add up.  No lock of a shard. */
static void hak_shard_watch(uint64_t now)
{
	uint64_t shards = hak_load(&hak_page.shards), threshold = shards * (uint64_t)hak_load(&hak_option.shard_threshold), waits;

	if (!threshold || shards == HAK_SHARDS_MAX)
		return;
	waits = hak_shard_contended();
	if (now - hak_load(&hak_page.waits_stamp) >= 1000) { /* two threads that do this together write nearly the same */
		hak_store(&hak_page.waits, waits);
		hak_store(&hak_page.waits_stamp, now);
	} else if (hak_unlikely(waits >= hak_load(&hak_page.waits) + threshold)) {
		hak_shard_grow(threshold, now);
	}
}

/* =================================================== page heap ================================================= */

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

/* The order of age in a shard: r goes behind `older`, which is NULL for the oldest place. */
static void hak_age_insert_locked(hak_shard_t *shard, hak_slab_t *r, hak_slab_t *older)
{
	r->older = older;
	r->newer = older ? older->newer : shard->oldest;
	*(r->newer ? &r->newer->older : &shard->newest) = r;
	*(older ? &older->newer : &shard->oldest) = r;
	if (!older)
		hak_store(&shard->oldest_stamp, r->stamp);
}

static void hak_age_remove_locked(hak_shard_t *shard, hak_slab_t *r)
{
	*(r->older ? &r->older->newer : &shard->oldest) = r->newer;
	*(r->newer ? &r->newer->older : &shard->newest) = r->older;
	if (!r->older && r->newer)
		hak_store(&shard->oldest_stamp, r->newer->stamp);
}

/* Puts a free run of known length and dirt into its bin, and into the order of age behind `older`. */
static void hak_run_insert_locked(hak_shard_t *shard, uint32_t u, uint32_t len, uint32_t dirty, uint64_t stamp,
                                  hak_slab_t *older)
{
	hak_slab_t *r = hak_slab_of(u), *last = hak_slab_of(u + len - 1);
	int kind = dirty ? HAK_DIRTY : HAK_CLEAN;
	uint32_t bin = hak_run_bin(len);
	uint64_t *word = &shard->nonempty[kind][bin / 64];

	last->len = len;
	r->len = len;
	r->dirty = dirty;
	r->where = HAK_IN_FREE;
	hak_list_push(&shard->bin[kind][bin], r);
	hak_store(word, *word | 1ull << (bin % 64));
	if (dirty) {
		r->stamp = stamp;
		hak_age_insert_locked(shard, r, older);
	}
	hak_count(&shard->count.dirty_units, dirty);
	hak_count(&shard->count.clean_units, len - dirty);
	hak_count(&shard->count.runs, 1u);
}

static void hak_run_remove_locked(hak_shard_t *shard, hak_slab_t *r)
{
	int kind = r->dirty ? HAK_DIRTY : HAK_CLEAN;
	uint32_t bin = hak_run_bin(r->len);
	uint64_t *word = &shard->nonempty[kind][bin / 64];

	hak_list_remove(&shard->bin[kind][bin], r);
	if (!shard->bin[kind][bin].head)
		hak_store(word, *word & ~(1ull << (bin % 64)));
	if (r->dirty)
		hak_age_remove_locked(shard, r);
	r->where = HAK_IN_NONE;
	hak_count(&shard->count.dirty_units, -(uint64_t)r->dirty);
	hak_count(&shard->count.clean_units, -(uint64_t)(r->len - r->dirty));
	hak_count(&shard->count.runs, -1ull);
}

/* The bitmap of shards with a free run learns what has changed.  It may say that there is one where the last was just
 * taken, never for long that there is none. */
static void hak_run_tell_locked(hak_shard_t *shard)
{
	hak_shard_mark_locked(shard, &hak_page.nonempty, shard->count.runs != 0);
}

/* Whether unit u is free and the shard's, so that nobody else can take it. */
static bool hak_shard_has_free_locked(const hak_shard_t *shard, uint32_t u)
{
	const hak_super_t *super = hak_load_acquire(&hak_super[u / HAK_SUPER_UNITS]);
	return super && hak_load(&super->shard) == hak_shard_number(shard) && hak_load(&hak_unit[u]) == 0;
}

/* The place in the order of age for what was freed at *stamp, nearly always the newest.  What is neither that nor the
 * oldest is looked for in a few steps, and may pass for younger than it is. */
static hak_slab_t *hak_age_place(const hak_shard_t *shard, uint64_t *stamp)
{
	hak_slab_t *older = shard->newest;
	if (shard->oldest && shard->oldest->stamp > *stamp)
		return NULL;
	for (int i = 0; i < HAK_AGE_LOOKED && older && older->stamp > *stamp; i++)
		older = older->older;
	if (older && older->stamp > *stamp)
		*stamp = older->stamp;
	return older;
}

/* Units u .. u + len, which came out of use at `stamp`, become free and join their free neighbours of the same shard.  The
 * age of the whole is that of its larger dirty part, so that a busy neighbour does not keep old memory young. */
static void hak_run_free_locked(hak_shard_t *shard, uint32_t u, uint32_t len, uint64_t stamp)
{
	uint32_t dirty = hak_dirty_count(u, len), most = dirty, start = u, end = u + len;
	hak_slab_t *older = hak_age_place(shard, &stamp);

	hak_words_set(u, len, 0);
	for (int side = 0; side < 2; side++) {
		uint32_t next = side ? end : start - 1;
		hak_slab_t *r;
		if (!hak_shard_has_free_locked(shard, next))
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
		hak_run_remove_locked(shard, r);
	}
	hak_run_insert_locked(shard, start, end - start, dirty, stamp, older);
}

/* Takes units out of the free run r, `skip` from its start.  What is before and behind them stays free, and as old as
 * it was. */
static void hak_run_cut_locked(hak_shard_t *shard, hak_slab_t *r, uint32_t skip, uint32_t units)
{
	uint32_t u = r->unit, len = r->len, dirty;
	uint64_t stamp = r->stamp;
	hak_slab_t *older;

	hak_run_remove_locked(shard, r);
	older = r->dirty ? r->older : shard->newest;
	if (skip) {
		dirty = hak_dirty_count(u, skip);
		hak_run_insert_locked(shard, u, skip, dirty, stamp, older);
		if (dirty)
			older = hak_slab_of(u);
		u += skip;
		len -= skip;
	}
	if (len > units) {
		dirty = hak_dirty_count(u + units, len - units);
		hak_run_insert_locked(shard, u + units, len - units, dirty, stamp, older);
	}
}

/* Reserves another range of at least `units`, halving what it asks for until the system agrees. */
static HAK_START bool hak_range_reserve_locked(uint32_t units)
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
static bool hak_page_is_split(void) { return hak_shard_sum(runs) > HAK_FORBIDDEN_RUNS; }

/* Units of the free run r, `skip` from its start, may be touched from now on. */
static bool hak_run_permit_locked(const hak_slab_t *r, uint32_t skip, uint32_t units)
{
	if (!hak_page_is_forbidden())
		return true;
	if (hak_page_is_split()) { /* all of r may: it joins its neighbours, which are in use */
		skip = 0;
		units = r->len;
	}
	return hak_os_commit(r->base + ((size_t)skip << HAK_UNIT_SHIFT), (size_t)units << HAK_UNIT_SHIFT);
}

/* Units to commit at the end of a range, so that the shard gets a free run of `units`; 0: it has no room for them. */
static uint32_t hak_range_need_locked(const hak_range_t *r, const hak_shard_t *shard, uint32_t units)
{
	uint32_t u = r->first + r->top, tail = 0, n;
	if (r->top && hak_shard_has_free_locked(shard, u - 1))
		tail = hak_slab_of(u - 1)->len;
	n = (uint32_t)hak_round_up(units > tail ? units - tail : 1, HAK_SUPER_UNITS);
	return n <= r->units - r->top ? n : 0;
}

/* Commits *n units of superslabs at the end of a range, so that the shard gets a free run of `units`, and gives them to
 * it.  An old range may have room: what the last one was reserved for was larger, or the system refused it.  Locks of
 * the shard and of the ranges; returns the first unit, 0: out of memory. */
static HAK_START uint32_t hak_range_commit_locked(hak_shard_t *shard, uint32_t units, uint32_t *n)
{
	hak_range_t *r = NULL;
	uint32_t u;

	*n = 0;
	for (uint32_t i = 0; i < hak_page.ranges && !*n; i++)
		*n = hak_range_need_locked(r = &hak_page.range[i], shard, units);
	if (!*n) {
		*n = (uint32_t)hak_round_up(units, HAK_SUPER_UNITS);
		if (!hak_range_reserve_locked(*n))
			return 0;
		r = &hak_page.range[hak_page.ranges - 1];
	}
	u = r->first + r->top;
	char *base = r->base + ((size_t)r->top << HAK_UNIT_SHIFT);
	for (uint32_t i = u; i < u + *n; i += HAK_SUPER_UNITS) {
		hak_super_t *s = hak_super[i / HAK_SUPER_UNITS]; /* there already if committing failed before */
		if (!s && !(s = hak_meta_alloc(sizeof *s)))
			return 0;
		hak_hg_relaxed(s->shard);
		hak_store(&s->shard, HAK_SHARD_NONE); /* no shard's neighbour until all of it is committed */
		for (uint32_t k = 0; k < HAK_SUPER_UNITS; k++) {
			s->unit[k].unit = i + k;
			s->unit[k].base = base + ((size_t)(i + k - u) << HAK_UNIT_SHIFT);
		}
		hak_store_release(&hak_super[i / HAK_SUPER_UNITS], s);
	}
	if (!hak_page_is_forbidden() && !hak_os_commit(base, (size_t)*n << HAK_UNIT_SHIFT))
		return 0;
	for (uint32_t i = u; i < u + *n; i += HAK_SUPER_UNITS)
		hak_store(&hak_super_of(i)->shard, hak_shard_number(shard));
	r->top += *n;
	return u;
}

/* New superslabs for a shard, so that it has a free run of `units`. */
static HAK_START bool hak_page_grow_locked(hak_shard_t *shard, uint32_t units, uint64_t now)
{
	uint32_t u, n;

	hak_lock(&hak_page.reserving);
	u = hak_range_commit_locked(shard, units, &n);
	hak_unlock(&hak_page.reserving);
	if (!u)
		return false;
	hak_count(&shard->count.supers, n / HAK_SUPER_UNITS);
	hak_run_free_locked(shard, u, n, now);
	return true;
}

/* The shortest free run of at least `units` in the bins of one kind; NULL. */
static hak_slab_t *hak_run_find_locked(const hak_shard_t *shard, int kind, uint32_t units)
{
	uint32_t bin = hak_run_bin(units);
	hak_slab_t *best = NULL;

	if (bin >= 64) { /* lengths are mixed here: the best of the first few */
		int looked = 0;
		for (hak_slab_t *r = shard->bin[kind][bin].head; r && looked < 16; r = r->next, looked++)
			if (r->len >= units && (!best || r->len < best->len))
				best = r;
		if (best)
			return best;
		bin++;
	}
	for (uint32_t w = bin / 64; w < HAK_RUN_WORDS; w++) {
		uint64_t bits = shard->nonempty[kind][w];
		if (w == bin / 64)
			bits &= ~0ull << (bin % 64);
		if (bits)
			return shard->bin[kind][w * 64 + (uint32_t)__builtin_ctzll(bits)].head;
	}
	return NULL;
}

/* Whether it may have one: a look without its lock, so that nobody waits for nothing. */
static bool hak_shard_peek(const hak_shard_t *shard, int kind, uint32_t units)
{
	uint32_t bin = hak_run_bin(units);
	for (uint32_t w = bin / 64; w < HAK_RUN_WORDS; w++)
		if (hak_load(&shard->nonempty[kind][w]) >> (w == bin / 64 ? bin % 64 : 0))
			return true;
	return false;
}

/* Likewise of the kind, or of one that is better to take: a dirty run costs no memory. */
static HAK_START hak_slab_t *hak_run_find_best_locked(const hak_shard_t *shard, int kind, uint32_t units)
{
	hak_slab_t *r = hak_run_find_locked(shard, HAK_DIRTY, units);
	return r || kind == HAK_DIRTY ? r : hak_run_find_locked(shard, HAK_CLEAN, units);
}

/* A superslab becomes another shard's, if a free run of this kind covers all of one.  Both shards' locks. */
static void hak_shard_move_locked(hak_shard_t *from, hak_shard_t *to, int kind, uint64_t now)
{
	uint32_t len = HAK_SUPER_UNITS, skip, u;
	uint64_t stamp;
	hak_slab_t *r = hak_run_find_locked(from, kind, 2 * len - 1); /* wherever it begins */

	if (!r && !(r = hak_run_find_locked(from, kind, len)))
		return;
	skip = -r->unit % len;
	if (skip + len > r->len)
		return;
	u = r->unit + skip;
	stamp = r->dirty ? r->stamp : now;
	hak_run_cut_locked(from, r, skip, len);
	hak_store(&hak_super_of(u)->shard, hak_shard_number(to));
	hak_run_tell_locked(from);
	hak_count(&from->count.supers, -1ull);
	hak_count(&to->count.supers, 1u);
	hak_count(&to->count.moved, 1u);
	hak_run_free_locked(to, u, len, stamp);
}

/* Units that callers and heaps have.  Without the shards' locks it may be off by what changes hands just now. */
HAK_INLINE uint64_t hak_page_in_use(void)
{
	uint64_t kept = hak_big_units(), used = hak_shard_sum(used_units);
	return used > kept ? used - kept : 0;
}

/* Units that nobody uses and that have memory behind them. */
HAK_INLINE uint64_t hak_page_kept(void) { return hak_shard_sum(dirty_units) + hak_big_units(); }

/* A kept run leaves BigCache and becomes free units, as old as it was.  Its shard's lock, and BigCache's. */
static void hak_run_unkeep_locked(hak_shard_t *shard, hak_slab_t *r)
{
	uint64_t stamp = r->big.stamp;
	hak_count(&shard->count.used_units, -(uint64_t)r->len); /* first, so that nobody takes it for memory in use again */
	hak_big_remove_locked(&r->big);
	hak_count(&shard->count.large_blocks, -1ull);
	hak_count(&shard->count.large_units, -(uint64_t)r->len);
	hak_run_free_locked(shard, r->unit, r->len, stamp);
	hak_run_tell_locked(shard);
}

HAK_INLINE uint64_t hak_run_kept(const hak_shard_t *shard) /* units of the shard that are in BigCache */
{
	return hak_load(&hak_bigcache.units[hak_shard_number(shard)]);
}

/* From b on, the oldest kept run that is the shard's.  Both locks. */
static hak_big_t *hak_run_kept_locked(const hak_shard_t *shard, hak_big_t *b)
{
	if (!hak_run_kept(shard))
		return NULL;
	while (b && hak_shard_of(hak_big_run(b)->unit) != shard)
		b = b->newer;
	return b;
}

/* The shard's oldest kept run that was freed before `before` leaves BigCache; *given counts it.  False: there is none. */
static HAK_COLD bool hak_run_unkeep_oldest_locked(hak_shard_t *shard, uint64_t before, uint64_t *given)
{
	hak_big_t *b;
	hak_lock(&hak_bigcache.lock);
	b = hak_run_kept_locked(shard, hak_bigcache.oldest[HAK_BIG_RUN]);
	if (b && b->stamp >= before)
		b = NULL;
	if (b) {
		++*given;
		hak_run_unkeep_locked(shard, hak_big_run(b));
	}
	hak_unlock(&hak_bigcache.lock);
	return b != NULL;
}

/* No free run of the shard with dirty units is as long as `need`: one in BigCache may be, or become so with its
 * neighbours.  The shortest of the oldest that is long enough leaves it, or else the oldest.  False: all together would
 * not do. */
static HAK_START bool hak_run_unkeep_for_locked(hak_shard_t *shard, uint32_t need)
{
	hak_big_t *best = NULL, *oldest, *b;
	if (!hak_run_kept(shard) || shard->count.dirty_units + hak_run_kept(shard) < need)
		return false;
	hak_lock(&hak_bigcache.lock);
	b = oldest = hak_run_kept_locked(shard, hak_bigcache.oldest[HAK_BIG_RUN]);
	for (int i = 0; i < HAK_BIG_LOOKED && b; i++, b = hak_run_kept_locked(shard, b->newer))
		if (hak_big_run(b)->len >= need && (!best || b->len < best->len))
			best = b;
	if (!best)
		best = oldest;
	if (best) {
		hak_bigcache.needed++;
		hak_run_unkeep_locked(shard, hak_big_run(best));
	}
	hak_unlock(&hak_bigcache.lock);
	return best != NULL;
}

/* The run at u leaves BigCache, if it stands there and is the shard's: what is before it wants to grow. */
static HAK_COLD void hak_run_unkeep_at_locked(hak_shard_t *shard, uint32_t u)
{
	if (!hak_load_acquire(&hak_super[u / HAK_SUPER_UNITS]) || hak_load(&hak_unit[u]) != HAK_RUN_KEPT || hak_shard_of(u) != shard)
		return;
	hak_lock(&hak_bigcache.lock);
	if (hak_load(&hak_unit[u]) == HAK_RUN_KEPT && hak_slab_of(u)->big.key) { /* no key: it is in somebody's hands */
		hak_bigcache.needed++;
		hak_run_unkeep_locked(shard, hak_slab_of(u));
	}
	hak_unlock(&hak_bigcache.lock);
}

/* The shard *at, whose lock is held, has no free run of `units` and this kind: what others have.  A superslab of which
 * all is free changes its shard, so that memory follows the load: that comes first.  A run is taken where it is, if
 * `here`: *at is its shard then, and that lock is held instead.  What is longer than a superslab never moves: so long
 * runs would be torn to pieces.  NULL: there is nothing.  The lock of *at may have been let go in between. */
static HAK_START hak_slab_t *hak_shard_borrow_locked(hak_shard_t **at, uint32_t units, int kind, bool here, uint64_t now)
{
	hak_shard_t *own = *at, *other;
	hak_slab_t *r;

	for (int whole = units <= HAK_SUPER_UNITS; whole >= (here ? 0 : 1); whole--) {
		bool kept = kind == HAK_DIRTY && !whole; /* what others have in BigCache, too */
		uint64_t others = (hak_load(&hak_page.nonempty) | (kept ? hak_load(&hak_bigcache.shards) : 0)) & ~hak_shard_bit(own);
		while ((other = hak_shard_pick(&others, own))) {
			if (!hak_shard_peek(other, kind, whole ? HAK_SUPER_UNITS : units) && !(kept && hak_run_kept(other)))
				continue;
			hak_shard_lock_beside(own, other);
			while (kept && !hak_run_find_locked(other, kind, units) && hak_run_unkeep_for_locked(other, units))
				;
			if (whole && !hak_run_find_best_locked(own, kind, units)) /* still */
				hak_shard_move_locked(other, own, kind, now);
			if ((r = hak_run_find_best_locked(own, kind, units))) {
				hak_unlock(&other->lock);
				return r;
			}
			if (!whole && (r = hak_run_find_locked(other, kind, units))) {
				hak_count(&other->count.lent, 1u);
				hak_unlock(&own->lock);
				*at = other;
				return r;
			}
			hak_unlock(&other->lock);
		}
	}
	return NULL;
}

/* Whether dirty memory of other shards is to be used up before clean memory is touched: always for a large block, whose
 * faults would cost more than another's lock; else when they keep so much, and shards cost no more memory than that. */
static bool hak_shard_others_are_rich(const hak_shard_t *own, uint32_t units)
{
	return ((hak_load(&hak_page.nonempty) | hak_load(&hak_bigcache.shards)) & ~hak_shard_bit(own)) != 0
	    && (units > HAK_CLASS_MAX / HAK_UNIT
	        || hak_page_kept() - own->count.dirty_units - hak_run_kept(own) > hak_page_in_use() / HAK_SHARD_SHARE);
}

/* A free run of at least `units`: of the shard *at, of another, with whose lock *at comes back, or new.  Clean runs of
 * others beside used units come last of all, as they do not cost less than a superslab of one's own, which is no memory
 * until it is touched, and one would meet there again.  NULL: out of memory. */
static hak_slab_t *hak_run_get_locked(hak_shard_t **at, uint32_t units, uint64_t now)
{
	bool here = units > HAK_SUPER_UNITS;

	for (hak_slab_t *r;;) {
		if ((r = hak_run_find_locked(*at, HAK_DIRTY, units)))
			return r;
		if (hak_run_unkeep_for_locked(*at, units))
			continue;
		if (hak_shard_others_are_rich(*at, units) && (r = hak_shard_borrow_locked(at, units, HAK_DIRTY, true, now)))
			return r;
		if ((r = hak_run_find_best_locked(*at, HAK_CLEAN, units)))
			return r;
		if ((r = hak_shard_borrow_locked(at, units, HAK_DIRTY, true, now))
		    || (r = hak_shard_borrow_locked(at, units, HAK_CLEAN, here, now)))
			return r;
		if (!hak_page_grow_locked(*at, units, now))
			return here ? NULL : hak_shard_borrow_locked(at, units, HAK_CLEAN, true, now);
	}
}

static void hak_page_peak(void)
{
	uint64_t bytes = (hak_page_in_use() << HAK_UNIT_SHIFT) + hak_load(&hak_whales.bytes);
	hak_gauge_raise(&hak_page.peak_bytes, bytes);
	hak_gauge_raise(&hak_page.peak_shown, bytes);
}

/* Units that may be kept, free dirty ones and those in BigCache: as many as are in use, or as the option says and what
 * experience adds to it. */
static uint64_t hak_page_allowance(void)
{
	uint64_t keep = (hak_target_retain() >> HAK_UNIT_SHIFT) + hak_shard_sum(regret_units);
	uint64_t used = hak_page_in_use();
	return keep > used ? keep : used;
}

/* Whether more than the allowance is kept.  A shard that has no more than its part of the option's leaves the look at
 * all of them to those that have. */
static bool hak_page_is_over_locked(const hak_shard_t *shard)
{
	uint64_t part = (hak_target_retain() >> HAK_UNIT_SHIFT) / hak_load(&hak_page.shards);
	return shard->count.dirty_units + hak_big_units() > part && hak_page_kept() > hak_page_allowance();
}

/* Whether a shard has dirty units that were freed before `before` (ms). */
static bool hak_shard_is_due(const hak_shard_t *shard, uint64_t before)
{
	return hak_load(&shard->count.dirty_units) && hak_load(&shard->oldest_stamp) < before;
}

static bool hak_page_is_due(uint64_t before)
{
	for (uint32_t i = 0, n = hak_load(&hak_page.shards); i < n; i++)
		if (hak_shard_is_due(&hak_page.shard[i], before))
			return true;
	return hak_load(&hak_bigcache.stamp) < before;
}

/* Clean units are handed out: if as many were purged a moment ago, a program's use goes up and down, and more is worth
 * keeping on its way down, to its peak at most.  One that only frees never gets here. */
static void hak_page_regret_locked(hak_shard_t *shard, uint64_t clean, uint64_t now)
{
	uint64_t most = hak_load(&hak_page.peak_bytes) >> HAK_UNIT_SHIFT, all, beyond;
	if (now - shard->recent_stamp > HAK_REGRET_MS)
		shard->recent_units = 0;
	if (clean > shard->recent_units)
		clean = shard->recent_units;
	shard->recent_units -= clean;
	if (!shard->count.regret_units)
		shard->regret_stamp = now;
	all = hak_shard_sum(regret_units) + clean;
	beyond = all > most ? all - most : 0;
	clean += shard->count.regret_units;
	hak_store(&shard->count.regret_units, clean > beyond ? clean - beyond : 0);
}

/* Units that were free are in use. */
static void hak_run_use_locked(hak_shard_t *shard, uint32_t u, uint32_t units)
{
	hak_dirty_set(u, units, true); /* what is handed out counts as touched */
	hak_count(&shard->count.used_units, units);
	hak_run_tell_locked(shard);
	hak_page_peak();
}

/* Takes a run of `units` at a multiple of `align` units, its words still 0; 0: out of memory.  *at is the shard that it
 * should come from, and whose lock is held; then that which it does come from.  *zero: never used. */
static uint32_t hak_run_alloc_locked(hak_shard_t **at, uint32_t units, uint32_t align, bool *zero, uint64_t now)
{
	uint32_t need = units + align - 1, skip = 0, u, dirty;
	hak_slab_t *r = hak_run_get_locked(at, need, now);
	hak_shard_t *shard = *at;

	if (!r)
		return 0;
	if (align > 1) { /* by address: the base of a range need not be a multiple of more than a superslab */
		uintptr_t address = (uintptr_t)r->base, to = hak_round_up(address, (size_t)align << HAK_UNIT_SHIFT);
		skip = (uint32_t)((to - address) >> HAK_UNIT_SHIFT);
	}
	if (!hak_run_permit_locked(r, skip, units))
		return 0;
	u = r->unit + skip;
	hak_run_cut_locked(shard, r, skip, units);
	dirty = hak_dirty_count(u, units);
	*zero = dirty == 0;
	if (dirty < units && shard->recent_units)
		hak_page_regret_locked(shard, units - dirty, now);
	hak_count(&shard->count.taken_units, units);
	hak_count(&shard->count.fresh_units, units - dirty);
	hak_run_use_locked(shard, u, units);
	hak_index_enter(hak_slab_of(u)->base, (size_t)units << HAK_UNIT_SHIFT);
	return u;
}

/* A used run, which nobody has used since `stamp`, goes back.  Returns whether more than the allowance is kept now. */
static bool hak_run_release_locked(hak_shard_t *shard, uint32_t u, uint32_t units, uint64_t stamp)
{
	hak_index_leave(hak_slab_of(u)->base);
	if (hak_page_is_forbidden() && !hak_page_is_split())
		hak_os_forbid(hak_slab_of(u)->base, (size_t)units << HAK_UNIT_SHIFT);
	hak_count(&shard->count.used_units, -(uint64_t)units);
	hak_run_free_locked(shard, u, units, stamp);
	hak_run_tell_locked(shard);
	return hak_page_is_over_locked(shard);
}

/* What was learned is forgotten by half in a second. */
static HAK_COLD void hak_shard_forget(hak_shard_t *shard, uint64_t now)
{
	if (!hak_load(&shard->count.regret_units))
		return;
	hak_lock(&shard->lock);
	if (now - shard->regret_stamp >= 1000) {
		hak_store(&shard->count.regret_units, shard->count.regret_units / 2);
		shard->regret_stamp = now;
	}
	hak_unlock(&shard->lock);
}

/* Gives memory of a shard back, oldest first: everything that was freed before `before` (ms), and more while more than
 * `keep` units are kept in all.  The calls to the system are made without the shard's lock, on runs that are marked as
 * neither free nor used, so that their superslabs stay where they are.  Purge lock.  False: the system refuses. */
static HAK_COLD bool hak_shard_purge(hak_shard_t *shard, uint64_t before, uint64_t keep, uint64_t now, size_t *returned)
{
	bool done = true;

	hak_lock(&shard->lock);
	for (hak_slab_t *r; done;) {
		/* What is in BigCache takes its turn by age: it becomes free first. */
		uint64_t kept = hak_page_kept(), oldest = kept > keep ? UINT64_MAX : before;
		r = shard->oldest;
		if (r && r->stamp < oldest)
			oldest = r->stamp;
		if (hak_run_kept(shard) && hak_run_unkeep_oldest_locked(shard, oldest, kept > keep ? &hak_bigcache.over : &hak_bigcache.aged))
			continue;
		if (!r || (r->stamp >= before && kept <= keep))
			break;
		uint32_t u = r->unit, len = r->len, dirty, piece = HAK_PURGE_SUPERS * HAK_SUPER_UNITS;
		uint64_t stamp = r->stamp;
		hak_slab_t *older = r->older;
		if (stamp >= before && kept - keep < piece) /* no more of a young run than need be */
			piece = hak_max32((uint32_t)(kept - keep), HAK_SUPER_UNITS);
		hak_run_remove_locked(shard, r);
		uint32_t clean = hak_dirty_skip(u, len); /* what is before and behind the piece joins it again below */
		if (clean)
			hak_run_insert_locked(shard, u, clean, 0, 0, NULL);
		u += clean;
		len -= clean;
		if (len > piece) {
			dirty = hak_dirty_count(u + piece, len - piece);
			hak_run_insert_locked(shard, u + piece, len - piece, dirty, stamp, older);
			len = piece;
		}
		dirty = hak_dirty_count(u, len);
		hak_store(&hak_unit[u], HAK_RUN_PURGING);
		hak_store(&hak_unit[u + len - 1], HAK_RUN_PURGING);
		hak_store(&shard->count.purging_dirty, dirty);
		hak_store(&shard->count.purging_clean, len - dirty);
		uint64_t bits[HAK_PURGE_SUPERS + 1]; /* the words are shared with units that are not ours */
		uint32_t first = u & ~(HAK_SUPER_UNITS - 1u);
		for (uint32_t i = first; i < u + len; i += HAK_SUPER_UNITS)
			bits[(i - first) / HAK_SUPER_UNITS] = hak_super_of(i)->dirty;
		hak_unlock(&shard->lock);

		for (uint32_t i = u, n; i < u + len; i += n) {
			bool is = (bits[(i - first) / 64] >> (i % 64)) & 1;
			for (n = 1; i + n < u + len && (((bits[(i + n - first) / 64] >> ((i + n) % 64)) & 1) == is); n++)
				;
			if (is)
				done &= hak_os_purge(hak_slab_of(i)->base, (size_t)n << HAK_UNIT_SHIFT);
		}

		hak_lock(&shard->lock);
		hak_store(&shard->count.purging_dirty, 0u);
		hak_store(&shard->count.purging_clean, 0u);
		if (done) { /* else it is locked memory: it stays */
			hak_dirty_set(u, len, false);
			hak_count(&shard->count.purges, 1u);
			hak_count(&shard->count.purged_units, dirty);
			if (before != UINT64_MAX) /* nor asked for, nor wanted elsewhere */
				hak_count(stamp < before ? &shard->count.aged_units : &shard->count.over_units, dirty);
			shard->recent_units = (now - shard->recent_stamp > HAK_REGRET_MS ? 0 : shard->recent_units) + dirty;
			shard->recent_stamp = now;
			*returned += (size_t)dirty << HAK_UNIT_SHIFT;
		}
		hak_run_free_locked(shard, u, len, now);
	}
	hak_run_tell_locked(shard);
	hak_unlock(&shard->lock);
	return done;
}

/* Gives memory back: everything that was freed before `before` (ms), and more while more than the allowance is kept.
 * Purge lock.  False: the system refuses. */
static HAK_COLD bool hak_page_purge_locked(uint64_t before, size_t *returned)
{
	uint64_t keep, now = hak_os_now();
	uint32_t shards = hak_load(&hak_page.shards);
	bool done = true;

	for (uint32_t i = 0; i < shards; i++)
		hak_shard_forget(&hak_page.shard[i], now);
	keep = hak_page_allowance();
	/* When more is kept than that, a sixteenth goes at a time, not one unit for each unit that comes. */
	keep = hak_page_kept() > keep ? keep - keep / 16 : UINT64_MAX;
	for (uint32_t i = 0; done && i < shards; i++) {
		hak_shard_t *shard = &hak_page.shard[(hak_page.purge_next + i) % shards];
		if (hak_shard_is_due(shard, before) || hak_load(&hak_bigcache.stamp) < before || hak_page_kept() > keep)
			done = hak_shard_purge(shard, before, keep, now, returned);
	}
	hak_page.purge_next++;
	return done;
}

/* The same.  Waits for another purge only if asked to; else that one looks again when it is done: while it was at it,
 * others may have freed what made the allowance so large that it began with. */
static HAK_COLD size_t hak_page_purge(uint64_t before, bool wait)
{
	size_t returned = 0;
	bool done;

	do {
		if (wait) {
			hak_lock(&hak_page.purging);
		} else if (!hak_lock_try(&hak_page.purging)) {
			(void)hak_exchange(&hak_page.missed, true);
			hak_count_own(purges_left);
			/* It may have been done before it could see that. */
			if (!hak_lock_try(&hak_page.purging))
				return returned;
		}
		done = hak_page_purge_locked(before, &returned);
		hak_unlock(&hak_page.purging);
		before = 0;
		wait = false;
	} while (done && hak_exchange(&hak_page.missed, false) && hak_page_kept() > hak_page_allowance());
	return returned;
}

static void hak_page_release(uint32_t u, uint32_t units, uint64_t stamp)
{
	hak_shard_t *shard = hak_shard_lock(u);
	bool over = hak_run_release_locked(shard, u, units, stamp);
	hak_unlock(&shard->lock);
	if (hak_unlikely(over))
		hak_page_purge(0, false);
}

/* Locks all shards and the ranges, for statistics: what is there stands still, and what nobody has counted yet can come
 * from nowhere, whether or not there are more shards in a moment.  Returns how many it has locked. */
static HAK_COLD uint32_t hak_page_lock_all(void)
{
	for (;;) {
		uint32_t n = hak_load(&hak_page.shards);
		for (uint32_t i = 0; i < n; i++)
			hak_lock_uncounted(&hak_page.shard[i].lock);
		hak_lock_uncounted(&hak_page.reserving);
		if (hak_load(&hak_page.shards) == n)
			return n;
		hak_unlock(&hak_page.reserving);
		for (uint32_t i = n; i > 0; i--)
			hak_unlock(&hak_page.shard[i - 1].lock);
	}
}

static HAK_COLD void hak_page_unlock_all(uint32_t n)
{
	hak_unlock(&hak_page.reserving);
	for (uint32_t i = n; i > 0; i--)
		hak_unlock(&hak_page.shard[i - 1].lock);
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
	hak_index_enter(w->base, w->len);
	hak_whales.live++;
	hak_store(&hak_whales.bytes, hak_whales.bytes + w->len);
}

static hak_whale_t *hak_whale_leave_locked(const void *p) /* NULL: not a whale */
{
	hak_whale_t **at = hak_whale_place_locked(p), *w = *at;
	if (w) {
		*at = w->next;
		hak_index_leave(p);
		hak_whales.live--;
		hak_store(&hak_whales.bytes, hak_whales.bytes - w->len);
	}
	return w;
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

static void hak_whale_forget(hak_whale_t *w)
{
	hak_lock(&hak_whales.lock);
	hak_whale_forget_locked(w);
	hak_unlock(&hak_whales.lock);
}

/* A mapping that nobody has goes back, or into BigCache, without its memory, if the system does not unmap it.  Returns
 * the bytes that went. */
static HAK_COLD size_t hak_whale_unmap(hak_whale_t *w)
{
	size_t len = w->len;
	if (hak_os_unmap(w->base, len)) {
		hak_whale_forget(w);
		return len;
	}
	hak_os_purge(w->base, len);
	hak_big_put(&w->big, HAK_BIG_WHALE, len, w->site, hak_os_now(), true);
	return 0;
}

/* The block at p is for a site with a rule: it is kept for so many ms once it is freed. */
static HAK_COLD void hak_whale_keep_for(const void *p, uint64_t keep)
{
	hak_lock(&hak_whales.lock);
	hak_whale_t *w = *hak_whale_place_locked(p);
	if (w)
		w->keep = keep;
	hak_unlock(&hak_whales.lock);
}

/* The oldest mapping in BigCache that was freed before `before`, taken out; *given counts it.  NULL: there is none. */
static HAK_COLD hak_whale_t *hak_whale_unkeep_oldest(uint64_t before, uint64_t *given)
{
	hak_lock(&hak_bigcache.lock);
	hak_big_t *b = hak_bigcache.oldest[HAK_BIG_WHALE];
	if (b && b->stamp >= before)
		b = NULL;
	if (b) {
		++*given;
		hak_big_remove_locked(b);
	}
	hak_unlock(&hak_bigcache.lock);
	return b ? hak_big_whale(b) : NULL;
}

static bool hak_whale_is_over(void) /* whether more mappings are kept than may be */
{
	uint64_t keep = hak_target_bigcache(), used = hak_load(&hak_whales.bytes);
	return hak_load(&hak_bigcache.bytes[HAK_BIG_WHALE]) > (keep > used ? keep : used);
}

/* Unmaps mappings in BigCache: those freed before `before`, and the oldest while there are more than may be kept.  What
 * the system does not unmap stays kept, and its turn comes after the others'. */
static HAK_COLD size_t hak_whale_purge(uint64_t before)
{
	size_t sum = 0;
	for (int refusals = 0; refusals < HAK_REFUSALS;) {
		bool over = hak_whale_is_over();
		hak_whale_t *w = hak_whale_unkeep_oldest(over ? UINT64_MAX : before,
		                                         over ? &hak_bigcache.over : &hak_bigcache.aged);
		if (!w)
			break;
		size_t len = hak_whale_unmap(w);
		if (before != UINT64_MAX)
			hak_add_shared(over ? &hak_whales.over_bytes : &hak_whales.aged_bytes, len);
		sum += len;
		refusals += len == 0;
	}
	return sum;
}

/* What BigCache holds beyond its budget leaves it, the oldest first: runs become free units, mappings go. */
static HAK_COLD void hak_big_shrink(void)
{
	bool over = false;
	for (int refusals = 0; refusals < HAK_REFUSALS;) {
		uint64_t runs = hak_load(&hak_bigcache.bytes[HAK_BIG_RUN]), whales = hak_load(&hak_bigcache.bytes[HAK_BIG_WHALE]);
		uint64_t stamp = hak_load(&hak_bigcache.stamp);
		hak_whale_t *w;
		if (runs + whales <= (uint64_t)hak_load(&hak_option.bigcache))
			break;
		if (whales && (w = hak_whale_unkeep_oldest(runs ? stamp + 1 : UINT64_MAX, &hak_bigcache.over))) {
			refusals += hak_whale_unmap(w) == 0;
		} else {
			hak_shard_t *shard;
			hak_lock(&hak_bigcache.lock);
			uint32_t u = hak_bigcache.oldest[HAK_BIG_RUN] ? hak_big_run(hak_bigcache.oldest[HAK_BIG_RUN])->unit : 0;
			hak_unlock(&hak_bigcache.lock);
			if (!u)
				continue;
			shard = hak_shard_lock(u);
			hak_run_unkeep_oldest_locked(shard, UINT64_MAX, &hak_bigcache.over);
			over = hak_page_kept() > hak_page_allowance();
			hak_unlock(&shard->lock);
		}
	}
	if (over)
		hak_page_purge(0, false);
}

/* After a block was put into BigCache: what is too much, or too old, goes.  free. */
static void hak_big_watch(void)
{
	uint64_t runs = hak_load(&hak_bigcache.bytes[HAK_BIG_RUN]), whales = hak_load(&hak_bigcache.bytes[HAK_BIG_WHALE]);
	uint64_t now = hak_os_now(), age = hak_big_is_old(now) ? now - hak_target_purge() : 0;

	if (hak_unlikely(runs + whales > (uint64_t)hak_load(&hak_option.bigcache)))
		hak_big_shrink();
	if (hak_unlikely(age || hak_page_kept() > hak_page_allowance()))
		hak_page_purge(age, false);
	if (hak_unlikely(age || hak_whale_is_over()))
		hak_whale_purge(age);
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

/* A block of BigCache that was a mapping is a caller's again. */
static void *hak_whale_reuse(hak_whale_t *w)
{
	hak_lock(&hak_whales.lock);
	hak_whales.hits++;
	hak_whales.allocs++;
	hak_whale_count_locked((int64_t)w->len);
	hak_whale_enter_locked(w);
	hak_unlock(&hak_whales.lock);
	return w->base;
}

/* A mapping of its own for a block.  NULL: out of memory. */
static HAK_COLD void *hak_whale_alloc(size_t n, size_t align, uint32_t site)
{
	size_t len = hak_round_up(n, hak_boot.os_page);
	hak_whale_t *w;
	char *base;

	hak_lock(&hak_whales.lock);
	w = hak_whale_entry_locked();
	hak_unlock(&hak_whales.lock);
	if (!w)
		return NULL;
	w->site = site;
	base = hak_os_map_aligned(len, align, PROT_READ | PROT_WRITE, &w->base, &w->len);
	if (!base && hak_whale_purge(UINT64_MAX) + hak_page_purge(UINT64_MAX, false))
		base = hak_os_map_aligned(len, align, PROT_READ | PROT_WRITE, &w->base, &w->len);
	if (!base) {
		hak_whale_forget(w);
		return NULL;
	}
	if (w->len != len) { /* with ends that cannot be had off: it is nobody's block, but it is mapped */
		hak_whale_unmap(w);
		return NULL;
	}
	hak_lock(&hak_whales.lock);
	hak_whales.fresh_bytes += w->len;
	hak_whales.allocs++;
	hak_whale_count_locked((int64_t)w->len);
	hak_whale_enter_locked(w);
	hak_unlock(&hak_whales.lock);
	hak_page_peak();
	return base;
}

static HAK_COLD bool hak_whale_free(void *p) /* false: not a whale */
{
	uint64_t age = hak_target_purge(), stamp = hak_os_now(), keep = 0;
	hak_lock(&hak_whales.lock);
	hak_whale_t *w = hak_whale_leave_locked(p);
	if (w) {
		hak_whales.frees++;
		hak_whale_count_locked(-(int64_t)w->len);
		keep = w->keep;
		w->keep = 0;
	}
	hak_unlock(&hak_whales.lock);
	if (!w)
		return false;
	if (keep) /* a rule says for how long: as if it had been freed so much earlier or later than now */
		stamp += keep - 1 - age;
	if (keep != 1 && !hak_page_is_forbidden() && hak_big_put(&w->big, HAK_BIG_WHALE, w->len, w->site, stamp, false))
		hak_big_watch();
	else
		hak_whale_unmap(w);
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
static HAK_COLD size_t hak_whale_around_locked(const void *p, uintptr_t *base)
{
	for (uint32_t i = 0; i < HAK_WHALE_BUCKETS; i++)
		for (hak_whale_t *w = hak_whales.bucket[i]; w; w = w->next)
			if ((uintptr_t)p - (uintptr_t)w->base < w->len) {
				*base = (uintptr_t)w->base;
				return w->len;
			}
	return 0;
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

HAK_INLINE uint32_t hak_slab_index_of(uint64_t offset, uint64_t reciprocal) { return (uint32_t)((offset * reciprocal) >> 40); }

/* Index of the block that starts at p, or an error.  Claim of the owner, or lock for an orphan. */
HAK_INLINE int hak_slab_index(const hak_slab_t *s, const hak_class_t *k, const void *p, uint32_t *index)
{
	uint64_t offset = (uint64_t)((const char *)p - s->base);
	uint32_t i = *index = hak_slab_index_of(offset, k->reciprocal);
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
		hak_store(&hak_slab_of(u + i)->back, (uint8_t)i);
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

/* Moves up to n free blocks out of s into the places before `end`, the lowest address last: so a stack gives them out in
 * the order of addresses.  From the bitmap first, then blocks that were never used. */
static uint32_t hak_slab_take(hak_slab_t *s, const hak_class_t *k, void **end, uint32_t n, uint32_t *carved)
{
	uint32_t got = 0, words = (k->blocks + 63) / 64, w = s->hint;
	size_t size = k->size;
	char *p;

	*carved = 0;
	if (s->free) {
		for (; w < words && got < n; w++) {
			uint64_t bits = s->map[w];
			char *base = s->base + (size_t)w * 64 * size;
			if (bits && !(bits & (bits + (bits & -bits)))) { /* one stretch, as nearly all are where bursts come and go */
				uint32_t first = (uint32_t)__builtin_ctzll(bits), stretch = 64 - (uint32_t)__builtin_clzll(bits) - first;
				stretch = hak_min32(stretch, n - got);
				p = base + first * size;
				for (uint32_t i = 0; i < stretch; i++, p += size)
					*--end = p;
				got += stretch;
				bits &= ~(~0ull >> (64 - stretch) << first);
			}
			for (; bits && got < n; bits &= bits - 1, got++)
				*--end = base + (size_t)__builtin_ctzll(bits) * size;
			s->map[w] = bits;
			if (bits)
				break;
		}
		s->hint = (uint16_t)w;
		s->free -= got;
	}
	if (got < n && s->carved < k->blocks) {
		uint32_t fresh = hak_min32(n - got, k->blocks - s->carved);
		p = s->base + s->carved * size;
		for (uint32_t i = 0; i < fresh; i++, p += size)
			*--end = p;
		got += fresh;
		s->carved += fresh;
		*carved = fresh;
	}
	s->used += got;
	return got;
}

HAK_INLINE void hak_slab_count_put(hak_slab_t *s, uint32_t n)
{
	s->free += n;
	s->used -= n;
	s->purged = 0;
}

HAK_INLINE bool hak_slab_has_room(const hak_slab_t *s, const hak_class_t *k)
{
	return s->free != 0 || s->carved < k->blocks;
}

/* The OS pages without a used block that lie between two used ones, from block *i on: their offsets in the slab; *i is
 * then behind them.  False: there are no more. */
static HAK_COLD bool hak_slab_free_pages(const hak_slab_t *s, uint32_t *i, size_t *from, size_t *to)
{
	size_t size = hak_class[s->class].size, page = hak_boot.os_page;

	for (uint32_t j; *i < s->carved; *i = j + 1) {
		/* Free blocks are *i .. j - 1, and j is a used one or the end. */
		for (j = *i; j < s->carved && ((s->map[j / 64] >> (j % 64)) & 1); j++)
			if (j % 64 == 0 && s->map[j / 64] == ~0ull)
				j += 63;
		j = hak_min32(j, s->carved);
		*from = hak_round_up(*i * size, page);
		*to = j * size & ~(page - 1);
		if (j > *i && *from < *to) {
			*i = j + 1;
			return true;
		}
	}
	return false;
}

/* Gives the OS pages back that hold no used block.  Returns their bytes. */
static HAK_COLD size_t hak_slab_purge(hak_slab_t *s)
{
	size_t sum = 0, from, to;
	bool refused = false;

	if (s->purged || s->free == 0 || hak_page_is_forbidden()) /* the last: what fills its free blocks will be checked */
		return 0;
	for (uint32_t i = 0; hak_slab_free_pages(s, &i, &from, &to);) {
		if (hak_os_purge(s->base + from, to - from))
			sum += to - from;
		else
			refused = true;
	}
	s->purged = !refused;
	return sum;
}

/* ================================================= owner look-up =============================================== */

/* From a pointer to the segment around it, in three ways: by its address alone (the unit words; whales, which lie
 * anywhere, are walked through), by the registry and by the scan.  The plain calls find slabs by address whatever
 * use_registry says; the checked ones, and what is said of a bad pointer, in the way that it says.  What is found was
 * so at some moment of the call: whoever needs it to be still so takes the lock of the segment and looks again. */

/* Whether unit u is, or was once, in use.  The 64 units below the first range are not, and whales may lie there. */
HAK_INLINE bool hak_unit_is_committed(uint32_t u)
{
	return u < HAK_UNITS_MAX && hak_load_acquire(&hak_super[u / HAK_SUPER_UNITS]) != NULL;
}

/* A slab or a large run around p, which lies on unit u.  For a slab no lock is needed, for a run its shard's. */
HAK_INLINE size_t hak_lookup_unit(const void *p, uint32_t u, uint32_t word, uintptr_t *base)
{
	if (hak_likely(hak_word_owner(word) >= HAK_OWNER_ORPHAN)) {
		const hak_super_t *super = hak_load_acquire(&hak_super[u / HAK_SUPER_UNITS]);
		uintptr_t back = hak_load(&super->unit[u % HAK_SUPER_UNITS].back);
		*base = ((uintptr_t)p & ~(HAK_UNIT - 1)) - (back << HAK_UNIT_SHIFT);
		return (size_t)hak_slab_units(&hak_class[hak_word_class(word)]) << HAK_UNIT_SHIFT;
	}
	while (hak_word(u) == HAK_RUN_BODY)
		u--;
	if (hak_word(u) != HAK_RUN_HEAD)
		return 0;
	*base = (uintptr_t)hak_slab_of(u)->base;
	return (size_t)hak_slab_of(u)->len << HAK_UNIT_SHIFT;
}

static HAK_NOINLINE size_t hak_lookup_address_slow(const void *p, uint32_t u, uintptr_t *base) /* on no slab */
{
	bool ours = hak_unit_is_committed(u);
	hak_lock_t *lock = ours ? &hak_shard_lock(u)->lock : &hak_whales.lock;
	size_t len;
	if (!ours)
		hak_lock(lock);
	len = ours ? hak_lookup_unit(p, u, hak_word(u), base) : hak_whale_around_locked(p, base);
	hak_unlock(lock);
	return len;
}

HAK_INLINE size_t hak_lookup_address(const void *p, uintptr_t *base)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u);
	if (hak_unlikely(hak_word_owner(word) < HAK_OWNER_ORPHAN))
		return hak_lookup_address_slow(p, u, base);
	return hak_lookup_unit(p, u, word, base);
}

/* Debug: the index says what the address says.  Under the lock that keeps the segment of p as it is. */
HAK_UNUSED static HAK_COLD void hak_lookup_check(const void *p, int64_t way)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u), owner = hak_word_owner(word);
	bool ours = hak_unit_is_committed(u);
	hak_lock_t *lock = owner >= HAK_OWNER_SHARED ? &hak_load_acquire(&hak_heap[owner])->claim
	                 : ours ? &hak_shard_of(u)->lock : &hak_whales.lock;
	uintptr_t base = 0, other = 0;

	hak_lock_uncounted(lock);
	if (hak_word(u) == word && (!ours || owner >= HAK_OWNER_SHARED || lock == &hak_shard_of(u)->lock)) {
		size_t len = ours ? hak_lookup_unit(p, u, word, &base) : hak_whale_around_locked(p, &base);
		size_t indexed = hak_index_find(p, &other, way);
		/* A large block that is being freed is no block any more, and leaves the index under the lock that comes next. */
		hak_assert(!len || (indexed == len && other == base) || (!indexed && hak_load(&hak_index.missing)));
	}
	hak_unlock(lock);
}

/* The segment around p, found in the way that use_registry says.  0: there is none.  No claim, no lock. */
static HAK_COLD size_t hak_lookup(const void *p, uintptr_t *base)
{
	int64_t way = hak_option.use_registry;
	size_t len;

	if (way == HAK_BY_ADDRESS)
		return hak_lookup_address(p, base);
	if (HAK_DEBUG)
		hak_lookup_check(p, way);
	len = hak_index_find(p, base, way);
	return len || !hak_load(&hak_index.missing) ? len : hak_lookup_address(p, base);
}

/* The three ways one by one, for the benchmark that compares them: bytes of the segment around p, and where it begins.
 * 0: it is in none, or use_registry is not that way. */
HAK_EXPORT size_t hak_lookup_by_address(const void *p, uintptr_t *base) { return hak_lookup_address(p, base); }

HAK_EXPORT size_t hak_lookup_by_registry(const void *p, uintptr_t *base)
{
	return hak_option.use_registry == HAK_BY_REGISTRY ? hak_index_find(p, base, HAK_BY_REGISTRY) : 0;
}

HAK_EXPORT size_t hak_lookup_by_scan(const void *p, uintptr_t *base)
{
	return hak_option.use_registry == HAK_BY_SCAN ? hak_index_find(p, base, HAK_BY_SCAN) : 0;
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
	snprintf(out, room, " (%sa block of %u bytes, class %u%s%s)", inside, k->size, k->base, asked, number);
}

/* The last words.  Whoever catches SIGABRT may still allocate: no lock stops this thread from here on. */
static _Noreturn HAK_COLD void hak_die(const char *call, const void *p, int error)
{
	char what[160];
	hak_describe(p, &error, what, sizeof what);
	hak_sayf("hakmem: %s(%p): %s%s\n", call, p, hak_error_says(error), what);
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

static _Noreturn HAK_COLD void hak_slab_refuse(const hak_slab_t *s, const void *p)
{
	uint32_t index;
	hak_die("free", p, hak_slab_index(s, &hak_class[s->class], p, &index));
}

/* Marks neighbours as free in the bitmap, from `first` on; dies if one of them is.  Otherwise as hak_slab_mark_all. */
HAK_INLINE void hak_slab_mark_stretch(hak_slab_t *s, uint32_t first, uint32_t n)
{
	uint64_t *word = &s->map[first / 64], mask;

	for (first %= 64; n; first = 0, word++) {
		uint32_t here = hak_min32(n, 64 - first);
		mask = ~0ull >> (64 - here) << first;
		if (hak_unlikely(*word & mask))
			hak_slab_refuse(s, s->base + ((size_t)(word - s->map) * 64 + (size_t)__builtin_ctzll(*word & mask)) * hak_class[s->class].size);
		*word |= mask;
		n -= here;
	}
}

/* Marks the first of n blocks, which lies on s, and those behind it that do, too, as free; how many.  Blocks that were made
 * together are often freed together, in that order or the other: a stretch of neighbours is marked at once.
 * hak_slab_count_put is to follow.  Claim of the owner, or lock for an orphan. */
static HAK_NOINLINE uint32_t hak_slab_mark_all(hak_slab_t *s, void *const *block, uint32_t n)
{
	const hak_class_t *k = &hak_class[s->class];
	const uint64_t reciprocal = k->reciprocal;
	const ptrdiff_t size = k->size;
	const size_t carved = s->carved, len = (size_t)s->len << HAK_UNIT_SHIFT;
	char *base = s->base;
	uint32_t low = s->hint, i = 0;

	for (size_t offset; i < n && (offset = (size_t)((char *)block[i] - base)) < len;) {
		uint32_t index = hak_slab_index_of(offset, reciprocal), stretch = 1;
		if (hak_unlikely(index * (size_t)size != offset || index >= carved))
			hak_slab_refuse(s, block[i]);
		ptrdiff_t step = i + 1 < n ? (char *)block[i + 1] - (char *)block[i] : 0;
		if (step != size && step != -size) {
			uint64_t *word = &s->map[index / 64], bit = 1ull << index % 64;
			if (hak_unlikely(*word & bit))
				hak_slab_refuse(s, block[i]);
			*word |= bit;
		} else {
			for (char *next = (char *)block[i] + step; stretch + i < n && block[i + stretch] == next; stretch++)
				next += step;
			/* Those behind what was carved, or before the slab, are none. */
			stretch = hak_min32(stretch, step > 0 ? (uint32_t)carved - index : index + 1);
			index -= step > 0 ? 0 : stretch - 1;
			hak_slab_mark_stretch(s, index, stretch);
		}
		low = hak_min32(low, index / 64);
		i += stretch;
	}
	s->hint = (uint16_t)low;
	return i;
}

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
	if (s->len == 1 && h->units < HAK_UNITS_AT_HAND && !hak_page_is_forbidden() && !hak_option.use_registry) {
		hak_words_set(s->unit, 1, HAK_RUN_AT_HAND);
		h->unit[h->units] = s->unit;
		hak_store(&h->units, h->units + 1);
		hak_store(&h->units_stamp, hak_os_now());
	} else {
		hak_page_release(s->unit, s->len, hak_os_now());
	}
}

/* The units that h has at hand go back to the page heap, as old as they are. */
static void hak_heap_release_units_locked(hak_heap_t *h)
{
	for (uint32_t n; (n = h->units);) {
		hak_store(&h->units, n - 1);
		hak_page_release(h->unit[n - 1], 1, h->units_stamp);
	}
}

/* n blocks of slab s, which h owns, have gone into the bitmap.  An empty slab is released; the owner keeps the current
 * one, so that a thread at the edge of a slab does not go to the page heap each time. */
HAK_INLINE void hak_heap_count_put_locked(hak_heap_t *h, hak_slab_t *s, const hak_class_t *k, uint32_t n, bool owner)
{
	hak_slab_count_put(s, n);
	hak_count(&h->bin[s->class].used, -(uint64_t)n);
	h->used_bytes[k->tier] -= (uint64_t)n * k->size;
	hak_gauge_watch_locked(h, k->tier);
	if (hak_unlikely(s->where == HAK_IN_FULL)) {
		hak_heap_delist_locked(h, s);
		hak_heap_enlist_locked(h, s, k);
	}
	if (hak_unlikely(s->used == 0) && !(owner && s->where == HAK_IN_CURRENT && k->tier != HAK_TIER_l25))
		hak_heap_release_locked(h, s);
}

/* One block goes into the bitmap of its slab, which h owns. */
HAK_INLINE void hak_heap_put_locked(hak_heap_t *h, void *p, uint32_t c, bool owner)
{
	hak_slab_t *s = hak_slab_head(hak_unit_of(p));
	hak_slab_mark_all(s, &p, 1);
	hak_heap_count_put_locked(h, s, &hak_class[c], 1, owner);
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

/* The first class from c on of which h ever had a stack in use or a slab, else HAK_CLASS_COUNT: the others have nothing
 * in them, and their part of the struct may never have been touched.  Owner, or claim. */
HAK_INLINE uint32_t hak_heap_served(const hak_heap_t *h, uint32_t c)
{
	uint64_t left = c < HAK_CLASS_COUNT ? hak_load(&h->served[c / 64]) >> c % 64 : 0;
	if (left)
		return c + (uint32_t)__builtin_ctzll(left);
	for (uint32_t i = c / 64 + 1; i < HAK_SERVED_WORDS; i++)
		if ((left = hak_load(&h->served[i])))
			return i * 64 + (uint32_t)__builtin_ctzll(left);
	return HAK_CLASS_COUNT;
}

static void hak_heap_serve_locked(hak_heap_t *h, uint32_t c)
{
	hak_store(&h->served[c / 64], h->served[c / 64] | 1ull << c % 64);
}

HAK_INLINE uint32_t hak_heap_level(const hak_heap_t *h, uint32_t c)
{
	return (uint32_t)(hak_load(&h->v[c]) & 0xFFFF) - h->floor[c];
}

/* Blocks of other heaps that this one has freed: those in batches are counted by class. */
static HAK_COLD uint64_t hak_heap_remote_frees(const hak_heap_t *h)
{
	uint64_t sum = hak_load(&h->count.remote_frees);
	for (uint32_t c = 0; c < hak_load_acquire(&hak_class_end); c++)
		sum += hak_load(&h->bin[c].sent);
	return sum;
}

HAK_INLINE uint32_t hak_heap_capacity(const hak_heap_t *h, uint32_t c) { return (uint32_t)(h->top[c] - h->floor[c]); }

/* Room for so many bytes more in all stacks together, or false.  `must`: also above the limit. */
static bool hak_cache_charge(uint64_t bytes, bool must)
{
	uint64_t limit = must ? UINT64_MAX : (uint64_t)hak_load(&hak_option.cache_limit);
	uint64_t seen = hak_load(&hak_cache.bytes);
	do
		if (bytes > limit || seen > limit - bytes)
			return false;
	while (!hak_cas(&hak_cache.bytes, &seen, seen + bytes));
	hak_gauge_raise(&hak_cache.peak, seen + bytes);
	return true;
}

/* The same for blocks of a class in a stack of h, whose tier may have a limit of its own. */
static bool hak_heap_charge(const hak_heap_t *h, const hak_class_t *k, uint32_t blocks)
{
	uint64_t bytes = (uint64_t)blocks * k->size, most = (uint64_t)hak_tier[k->tier].stacks << 10;
	return (!most || h->stack_bytes[k->tier] + bytes <= most) && hak_cache_charge(bytes, false);
}

/* A stack is not in use any more: its index is that of slot[0], which is NULL, and full.  So malloc and free find
 * their slow paths, and those give it a capacity again.  Owner, claim; the stack is empty. */
static void hak_heap_stack_reset(hak_heap_t *h, uint32_t c)
{
	uint64_t bytes = (uint64_t)hak_heap_capacity(h, c) * hak_class[c].size;
	if (bytes)
		hak_sub_shared(&hak_cache.bytes, bytes);
	h->stack_bytes[hak_class[c].tier] -= bytes;
	h->floor[c] = h->top[c] = 0;
	hak_store(&h->v[c], h->v[c] & ~0xFFFFull);
	h->bin[c].refills = h->bin[c].flushes = 0;
}

/* Sets the capacity, for which a larger one has been charged; the level fits already.  A period begins: above the level
 * all slots are NULL.  Owner, claim. */
static void hak_heap_stack_resize(hak_heap_t *h, uint32_t c, uint32_t capacity)
{
	const hak_class_t *k = &hak_class[c];
	uint16_t to = capacity > k->room ? k->large : k->small;
	uint32_t level = hak_heap_level(h, c), was = hak_heap_capacity(h, c);

	if (was > capacity)
		hak_sub_shared(&hak_cache.bytes, (uint64_t)(was - capacity) * k->size);
	h->stack_bytes[k->tier] += ((uint64_t)capacity - was) * k->size;
	if (to != h->floor[c]) {
		memcpy(&h->slot[to + 1], &h->slot[h->floor[c] + 1], level * sizeof(void *));
		hak_store(&h->v[c], (h->v[c] & ~0xFFFFull) | (to + level));
		h->floor[c] = to;
	}
	h->top[c] = (uint16_t)(to + capacity);
	memset(&h->slot[to + level + 1], 0, (capacity - level) * sizeof(void *));
	h->bin[c].refills = h->bin[c].flushes = 0;
	h->bin[c].since = h->v[c];
}

/* Puts blocks into a stack that has room for them.  Owner, slow paths. */
HAK_INLINE void hak_heap_push_all(hak_heap_t *h, uint32_t c, void *const *block, uint32_t n)
{
	uint64_t v = h->v[c], end = v + n;
	for (; v != end; v++, block++)
		if (HAK_HARDENED)
			hak_guard_push(h, c, v, *block);
		else
			h->slot[(v & 0xFFFF) + 1] = *block;
	hak_store(&h->v[c], v);
}

static void hak_heap_push(hak_heap_t *h, uint32_t c, void *p) { hak_heap_push_all(h, c, &p, 1); }

/* Moves the n oldest blocks of a stack into bitmaps: those of a slab that stand together are counted together.  Owner. */
static void hak_heap_flush_locked(hak_heap_t *h, uint32_t c, uint32_t n)
{
	const hak_class_t *k = &hak_class[c];
	void **bottom = &h->slot[h->floor[c] + 1];
	uint32_t level = hak_heap_level(h, c);

	for (uint32_t i = 0, first = 0; i < n; first = i) {
		uint32_t u = hak_unit_of(bottom[i]);
		if (hak_unlikely(hak_word(u) != (h->tag | c))) /* its slab is gone: it stood here twice */
			hak_die("free", bottom[i], HAK_ERR_ALREADY_FREE);
		hak_slab_t *s = hak_slab_head(u);
		i += hak_slab_mark_all(s, bottom + i, n - i);
		hak_heap_count_put_locked(h, s, k, i - first, true);
	}
	memmove(bottom, bottom + n, (level - n) * sizeof(void *));
	hak_store(&h->v[c], h->v[c] - n);
	hak_count(&h->bin[c].flushed, n);
	hak_count(&h->count.flush_blocks, n);
}

/* All of them, down to nothing, and out of use.  Owner. */
static HAK_COLD void hak_heap_flush_all_locked(hak_heap_t *h)
{
	for (uint32_t c = 0; (c = hak_heap_served(h, c)) < HAK_CLASS_COUNT; c++) {
		if (!hak_heap_capacity(h, c))
			continue;
		hak_heap_flush_locked(h, c, hak_heap_level(h, c));
		hak_heap_stack_reset(h, c);
	}
}

static uint64_t hak_heap_slab_bytes(const hak_heap_t *h)
{
	uint64_t sum = 0;
	for (uint32_t c = 0; (c = hak_heap_served(h, c)) < HAK_CLASS_COUNT; c++)
		sum += (uint64_t)h->bin[c].slabs * hak_class[c].units;
	return sum << HAK_UNIT_SHIFT;
}

/* Gives back what slabs hold beside used blocks: empty current slabs, and OS pages without a used block. */
static HAK_COLD size_t hak_heap_purge_locked(hak_heap_t *h)
{
	size_t sum = 0;
	for (uint32_t c = 0; (c = hak_heap_served(h, c)) < HAK_CLASS_COUNT; c++) {
		hak_bin_t *b = &h->bin[c];
		if (b->current && b->current->used == 0)
			hak_heap_release_locked(h, b->current);
		if (b->current)
			sum += hak_slab_purge(b->current);
		for (hak_slab_t *s = b->partial.head; s; s = s->next)
			sum += hak_slab_purge(s);
	}
	hak_heap_release_units_locked(h);
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

static void hak_pool_put(hak_batch_t *first, hak_batch_t *last, uint64_t n)
{
	hak_lock(&hak_pool.lock);
	last->next = hak_pool.free;
	hak_pool.free = first;
	hak_pool.count += n;
	hak_unlock(&hak_pool.lock);
}

/* All spare batches of h but the first `keep` go to the pool.  Owner. */
static HAK_NOINLINE void hak_batch_shed(hak_heap_t *h, uint32_t keep)
{
	hak_batch_t **at = &h->spare, *first, *last;
	uint32_t n = h->spares - keep;
	for (uint32_t i = 0; i < keep; i++)
		at = &(*at)->next;
	first = last = *at;
	*at = NULL;
	h->spares = keep;
	while (last && last->next)
		last = last->next;
	if (first)
		hak_pool_put(first, last, n);
}

static void hak_batch_spare(hak_heap_t *h, hak_batch_t *b) /* owner */
{
	b->next = h->spare;
	h->spare = b;
	h->spares++;
}

/* An empty batch goes back to the heap that filled it: so a stream of frees from one thread to another needs no lock
 * for its batches.  `self` is the calling thread's heap, or NULL. */
static void hak_batch_recycle(hak_heap_t *self, hak_batch_t *b)
{
	hak_heap_t *from = hak_heap_by_id(b->from);
	if (from && from == self) {
		hak_batch_spare(self, b);
	} else if (!from || hak_load(&from->inbox) == HAK_CLOSED || hak_fork_is_here()) {
		hak_pool_put(b, b, 1);
	} else {
		hak_batch_t *seen = hak_load(&from->returned);
		do
			b->next = seen;
		while (!hak_cas(&from->returned, &seen, b));
	}
}

/* The batches that have come back become spare.  Owner. */
static void hak_batch_collect(hak_heap_t *h)
{
	hak_batch_t *b = hak_load(&h->returned) ? hak_exchange(&h->returned, NULL) : NULL;
	for (hak_batch_t *next; b; b = next) {
		next = b->next;
		hak_batch_spare(h, b);
	}
	if (h->spares > 4 * HAK_POOL_MOVE)
		hak_batch_shed(h, HAK_POOL_MOVE);
}

static hak_batch_t *hak_batch_new(hak_heap_t *h) /* owner of h; NULL: out of memory */
{
	if (!h->spare)
		hak_batch_collect(h);
	if (!h->spare) {
		hak_lock(&hak_pool.lock);
		while (hak_pool.free && h->spares < HAK_POOL_MOVE) {
			hak_batch_t *b = hak_pool.free;
			hak_pool.free = b->next;
			hak_pool.count--;
			hak_batch_spare(h, b);
		}
		hak_unlock(&hak_pool.lock);
		hak_batch_t *fresh = h->spare ? NULL : hak_meta_alloc(4 * sizeof *fresh);
		for (uint32_t i = 0; fresh && i < 4; i++)
			hak_batch_spare(h, &fresh[i]);
		if (!h->spare)
			return NULL;
	}
	hak_batch_t *b = h->spare;
	h->spare = b->next;
	h->spares--;
	b->empty = b->fill = HAK_FILL_BYTES(HAK_FILL_MOST - hak_target_remote()) + 0x80u - HAK_REMOTE_BLOCKS;
	b->from = (uint16_t)h->id;
	return b;
}

/* An orphan with some room may be taken over; one with hardly any is not worth the lock. */
static void hak_orphan_enlist_locked(hak_shard_t *shard, hak_slab_t *s)
{
	const hak_class_t *k = &hak_class[s->class];
	s->where = s->used + k->blocks / 8 < k->blocks ? HAK_IN_PARTIAL : HAK_IN_FULL;
	hak_list_append(s->where == HAK_IN_PARTIAL ? &shard->orphan[s->class] : &shard->orphan_full[s->class], s);
	if (s->where == HAK_IN_PARTIAL)
		hak_shard_mark_locked(shard, &hak_page.orphaned[s->class], true);
}

static void hak_orphan_delist_locked(hak_shard_t *shard, hak_slab_t *s)
{
	hak_list_remove(s->where == HAK_IN_FULL ? &shard->orphan_full[s->class] : &shard->orphan[s->class], s);
	hak_shard_mark_locked(shard, &hak_page.orphaned[s->class], shard->orphan[s->class].head != NULL);
}

/* Locks a shard that has an orphan of class c to be taken over, or `own` if none has.  The bitmap says where to look, so
 * that as a rule one lock is taken. */
static hak_shard_t *hak_orphan_find(hak_shard_t *own, uint32_t c)
{
	uint64_t others = hak_load(&hak_page.orphaned[c]);
	hak_shard_t *other;

	if (!(others & hak_shard_bit(own)))
		while ((other = hak_shard_pick(&others, own))) {
			hak_lock(&other->lock);
			if (other->orphan[c].head)
				return other;
			hak_unlock(&other->lock);
		}
	hak_lock(&own->lock);
	return own;
}

static void hak_gauge_tell_orphans_locked(hak_shard_t *shard)
{
	for (int t = 0; t < HAK_TIER_whale; t++) {
		hak_gauge_add(t, -(int64_t)shard->orphan_untold[t]);
		shard->orphan_untold[t] = 0;
	}
}

/* n blocks of a slab of a dead thread have been marked as free.  Lock of its shard; returns whether too much is kept
 * now. */
static bool hak_orphan_count_put_locked(hak_shard_t *shard, hak_slab_t *s, uint32_t n, uint64_t now)
{
	const hak_class_t *k = &hak_class[s->class];

	hak_slab_count_put(s, n);
	hak_count(&shard->orphan_used[s->class], -(uint64_t)n);
	if ((shard->orphan_untold[k->tier] += n * k->size) >= HAK_GAUGE_MOST)
		hak_gauge_tell_orphans_locked(shard);
	if (s->where == HAK_IN_PARTIAL && s->used != 0)
		return false;
	hak_orphan_delist_locked(shard, s);
	if (s->used == 0) {
		s->where = HAK_IN_NONE;
		hak_count(&shard->orphans[s->class], -1ull);
		return hak_run_release_locked(shard, s->unit, s->len, now);
	}
	hak_orphan_enlist_locked(shard, s);
	return false;
}

/* Frees blocks of a batch that lie in orphaned slabs; the others stay in it.  One shard after the other: those of the
 * first block's, which the batch is full of as a rule, then those of the first that is left. */
static HAK_NOINLINE void hak_batch_free_orphans(hak_batch_t *b)
{
	bool over = false, more = true;
	uint64_t now = hak_os_now();

	while (more) {
		hak_shard_t *shard = NULL;
		uint16_t kept = 0;
		more = false;
		for (uint32_t i = 0, first = 0; i < b->count; first = i) {
			uint32_t u = hak_unit_of(b->block[i]), word = hak_word(u);
			if (hak_word_owner(word) == HAK_OWNER_ORPHAN && !shard) {
				shard = hak_shard_lock(u);
				word = hak_word(u); /* it may have been taken over in between */
			}
			if (hak_word_owner(word) != HAK_OWNER_ORPHAN || hak_shard_of(u) != shard) {
				more |= hak_word_owner(word) == HAK_OWNER_ORPHAN;
				b->block[kept++] = b->block[i++];
				continue;
			}
			hak_slab_t *s = hak_slab_head(u);
			i += hak_slab_mark_all(s, b->block + i, b->count - i);
			hak_count(&shard->orphan_received[s->class], i - first);
			over |= hak_orphan_count_put_locked(shard, s, i - first, now);
		}
		b->count = kept;
		if (shard)
			hak_unlock(&shard->lock);
	}
	if (over)
		hak_page_purge(0, false);
}

/* Frees blocks of a batch that h owns into its bitmaps, or into its stacks where the owner does it and there is
 * room; the others stay in the batch.  Returns the bytes that it had. */
static uint32_t hak_batch_free_locked(hak_heap_t *h, hak_batch_t *b, bool owner)
{
	uint32_t stacked = 0;
	uint16_t kept = 0;

	for (uint32_t i = 0, first = 0; i < b->count; first = i) {
		uint32_t u = hak_unit_of(b->block[i]), word = hak_word(u), c = hak_word_class(word);
		if (hak_unlikely(hak_word_owner(word) != h->id)) {
			b->block[kept++] = b->block[i++];
			continue;
		}
		uint32_t room = owner ? h->top[c] - (uint32_t)(h->v[c] & 0xFFFF) : 0;
		if (room) {
			while (++i < b->count && i - first < room && hak_unit_of(b->block[i]) == u)
				;
			hak_heap_push_all(h, c, b->block + first, i - first);
			hak_count(&h->bin[c].filled, i - first);
			stacked += i - first;
		} else {
			hak_slab_t *s = hak_slab_head(u);
			i += hak_slab_mark_all(s, b->block + i, b->count - i);
			hak_heap_count_put_locked(h, s, &hak_class[c], i - first, owner);
		}
		hak_count(&h->bin[c].received, i - first);
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

/* Frees one block wherever it belongs now, without needing memory: under the claim of its owner, or the lock of
 * its shard.  For blocks in batches that arrived too late, and for threads without a heap.  `received`: it was counted as
 * sent before. */
static HAK_NOINLINE void hak_block_free_anywhere(void *p, bool received)
{
	for (;;) {
		uint32_t u = hak_unit_of(p), word = hak_word(u), owner = hak_word_owner(word), c = hak_word_class(word);
		bool over;
		if (owner == HAK_OWNER_ORPHAN) {
			hak_shard_t *shard = hak_shard_lock(u);
			if (hak_word(u) != word) { /* taken over in between */
				hak_unlock(&shard->lock);
				continue;
			}
			hak_count(received ? &shard->orphan_received[c] : &shard->orphan_claimed[c], 1u);
			hak_slab_t *s = hak_slab_head(u);
			hak_slab_mark_all(s, &p, 1);
			over = hak_orphan_count_put_locked(shard, s, 1, hak_os_now());
			hak_unlock(&shard->lock);
			if (over)
				hak_page_purge(0, false);
			return;
		}
		hak_heap_t *h = owner >= HAK_OWNER_SHARED ? hak_heap_by_id(owner) : NULL;
		if (!h)
			hak_die("free", p, HAK_ERR_ALREADY_FREE); /* its slab is gone */
		hak_claim(h);
		if (hak_word(u) == word) {
			hak_count(received ? &h->bin[c].received : &h->bin[c].claimed, 1u);
			hak_heap_put_locked(h, p, c, h->id == HAK_OWNER_SHARED);
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
		if (b->count)
			hak_batch_free_orphans(b);
		for (uint32_t i = 0; i < b->count; i++)
			hak_block_free_anywhere(b->block[i], true);
		hak_batch_recycle(to, b);
	}
}

/* Whether slabs of a thread that has ended wait in h.  Claim. */
static void hak_heap_keep_locked(hak_heap_t *h, uint32_t kept)
{
	if (h->kept == HAK_KEPT_WAITING)
		hak_sub_shared(&hak_heaps.kept, 1u);
	if (kept == HAK_KEPT_WAITING)
		hak_add_shared(&hak_heaps.kept, 1u);
	hak_store(&h->kept_stamp, hak_os_now());
	hak_store(&h->kept, kept);
}

/* All slabs of h go to whoever needs them next: empty ones to the page heap, as nobody has used them since `stamp`, the
 * others to the orphans.  Returns whether too much is kept now. */
static HAK_COLD bool hak_heap_disown_locked(hak_heap_t *h, uint64_t stamp)
{
	hak_shard_t *shard = NULL;
	bool over = false;

	for (uint32_t n; (n = h->units); hak_store(&h->units, n - 1)) {
		shard = hak_shard_switch(shard, h->unit[n - 1]);
		over |= hak_run_release_locked(shard, h->unit[n - 1], 1, h->units_stamp);
	}
	for (int t = 0; t < HAK_TIER_whale; t++) { /* before anybody frees a block of these orphans: the gauges count them */
		hak_gauge_tell_locked(h, t);
		h->used_bytes[t] = h->told_bytes[t] = h->told_low[t] = h->told_span[t] = 0;
	}
	for (uint32_t c = 0; (c = hak_heap_served(h, c)) < HAK_CLASS_COUNT; c++) {
		hak_bin_t *b = &h->bin[c];
		for (hak_slab_t *s; (s = b->current ? b->current : b->partial.head ? b->partial.head : b->full.head);) {
			hak_heap_delist_locked(h, s);
			shard = hak_shard_switch(shard, s->unit);
			if (s->used == 0) {
				over |= hak_run_release_locked(shard, s->unit, s->len, stamp);
				hak_count(&h->count.slabs_released, 1u);
				continue;
			}
			hak_words_set(s->unit, s->len, (HAK_OWNER_ORPHAN << 8) | c);
			hak_count(&shard->orphans[c], 1u);
			hak_count(&shard->orphan_used[c], s->used);
			hak_orphan_enlist_locked(shard, s);
		}
		hak_store(&b->slabs, 0u);
		hak_store(&b->used, 0u);
	}
	if (shard)
		hak_unlock(&shard->lock);
	h->peak_bytes = 0;
	h->left_alone = 0;
	h->lost = 1;
	hak_heap_keep_locked(h, HAK_KEPT_NOT);
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

/* Frees a batch in the place of the heap that owns its blocks, and does not come to its inbox or has no thread.
 * `alone`: if it has not come for long, others may have its slabs. */
static HAK_NOINLINE void hak_batch_free_claimed(hak_heap_t *self, hak_heap_t *h, hak_batch_t *b, bool alone)
{
	hak_batch_t *stray;
	bool over = false, closed;
	hak_claim(h);
	closed = hak_load(&h->inbox) == HAK_CLOSED; /* then it may wait with its stacks: see hak_heap_break_up_locked */
	stray = closed ? NULL : hak_heap_drain_locked(h, false, self, NULL);
	hak_batch_free_locked(h, b, false);
	if (alone && !closed && ++h->left_alone >= HAK_LEFT_ALONE)
		over = hak_heap_disown_locked(h, hak_os_now());
	hak_unclaim(h);
	b->next = stray;
	hak_batch_reroute(self, b);
	if (over)
		hak_page_purge(0, false);
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
		/* Do the owner's work for it, rather than let memory pile up. */
		hak_count(&self->count.batches_claimed, 1u);
		hak_batch_free_claimed(self, h, b, true);
		return;
	}
	hak_add_shared(&h->inbox_bytes, b->bytes);
	seen = hak_load(&h->inbox);
	do {
		if (seen == HAK_CLOSED) { /* its thread has ended */
			hak_sub_shared(&h->inbox_bytes, b->bytes);
			hak_count(&self->count.batches_rerouted, 1u);
			hak_batch_free_claimed(self, h, b, false);
			return;
		}
		if (!seen)
			hak_store(&h->inbox_stamp, hak_os_now());
		b->next = seen;
	} while (!hak_cas(&h->inbox, &seen, b));
	hak_count(&self->count.batches_posted, 1u);
}

/* Closes a batch of h, and sends it on its way.  Most of the frees that filled it have not been counted to the clock. */
static void hak_heap_post(hak_heap_t *h, uint32_t slot) /* owner */
{
	hak_batch_t *b = h->out[slot];
	uint32_t fill = b->fill;

	b->bytes = (fill - b->empty) >> 8;
	b->count = (uint16_t)hak_fill_blocks(fill);
	h->out[slot] = NULL;
	h->outs--;
	h->tick -= b->count;
	hak_batch_post(h, b, h->out_owner[slot]);
}

static HAK_NOINLINE void hak_heap_post_all(hak_heap_t *h) /* owner */
{
	for (uint32_t i = 0; i < HAK_OUT_SLOTS && h->outs; i++)
		if (h->out[i])
			hak_heap_post(h, i);
}

/* Puts a block into the batch for its owner if there is one with room for more.  Nearly all frees of others' blocks end
 * here.  False: nothing was done.  Owner of h. */
HAK_INLINE bool hak_remote_add(hak_heap_t *h, void *p, uint32_t word)
{
	uint32_t owner = hak_word_owner(word), c = hak_word_class(word), i = owner % HAK_OUT_SLOTS, fill;
	hak_batch_t *b = h->out[i];

	if (!b || h->out_owner[i] != owner || (fill = b->fill + hak_class[c].weight) & HAK_FILL_FULL)
		return false;
	hak_count(&h->bin[c].sent, 1u);
	b->block[hak_fill_blocks(b->fill)] = p;
	b->fill = fill;
	return true;
}

/* Frees a block of another heap where no batch will take it.  Owner of h. */
static void hak_remote_free_now(hak_heap_t *h, void *p, bool strayed)
{
	if (!strayed)
		hak_count(&h->count.remote_frees, 1u);
	hak_block_free_anywhere(p, strayed);
}

/* Puts a block into the batch for its owner, and posts it if it is full then.  Owner of h. */
static void hak_remote_send(hak_heap_t *h, void *p, uint32_t word, bool strayed)
{
	uint32_t owner = hak_word_owner(word), c = hak_word_class(word), size = hak_class[c].size;
	uint32_t i = owner % HAK_OUT_SLOTS;
	hak_batch_t *b;

	if (owner == HAK_OWNER_SHARED) { /* it gets no batches */
		hak_remote_free_now(h, p, strayed);
		return;
	}
	if (h->out[i] && h->out_owner[i] != owner)
		hak_heap_post(h, i);
	if (!(b = h->out[i])) {
		if (!(b = hak_batch_new(h))) {
			hak_remote_free_now(h, p, strayed);
			return;
		}
		h->out_owner[i] = owner;
		h->out[i] = b;
		h->outs++;
	}
	if (!strayed)
		hak_count(&h->bin[c].sent, 1u);
	b->block[hak_fill_blocks(b->fill)] = p;
	b->fill += HAK_FILL_BYTES(size) | HAK_FILL_BLOCK;
	if (b->fill & HAK_FILL_FULL || size >= HAK_REMOTE_AT_ONCE)
		hak_heap_post(h, i);
}

/* Takes up to `most` blocks out of h's stacks whose slabs h has lost.  Owner, claim. */
static HAK_COLD uint32_t hak_heap_strays_locked(hak_heap_t *h, void **stray, uint32_t most)
{
	uint32_t n = 0;
	for (uint32_t c = 0; (c = hak_heap_served(h, c)) < HAK_CLASS_COUNT; c++)
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

/* ================================================ adaptive sizing ============================================== */

/* How many blocks each stack may hold.  A stack has no capacity until a slow path of its class has need of one.  From
 * then on its capacity is thought about at the end of each period, by usage = mark / capacity, where the mark is the
 * highest level in the period:
 *
 *    above 0.8    it doubles; without a refill it halves: a class that only frees has no use for a large stack
 *    below 0.2    it halves
 *    not in use   it halves, and in the end the stack goes out of use
 *
 * A period is ten refills, eight flushes without a refill, or a second.  After ten refills it only ends if the capacity
 * doubles, else it goes on: a program that allocates much and then frees as much refills often before the mark can rise,
 * and to halve at once what has a low mark would gain nothing, as it holds little.  Time passes for a thread only
 * on its slow paths, so an idle one keeps what it has.
 *
 * Malloc and free do nothing for the mark: when a period begins the slots above the level are NULL, and what is pushed
 * stays in its slot after it is popped.  So the slots that were reached are those before the first NULL; they are
 * cleared when the period ends, which is paid for by the pushes.
 *
 * Those of a tier in one heap may be bounded by its row: who comes first has a stack, until it is not in use any more.
 * All capacities together are bounded by the option cache_limit, but for the `tight` ones that a stack gets above it:
 * 16 blocks, at most 16 KiB, none of larger blocks.  Owner, claim. */

typedef struct hak_adapted { /* what was done to a stack, to be said when the claim is gone */
	uint32_t class, from, to, count;
} hak_adapted_t;

static HAK_COLD void hak_adapt_say(hak_adapted_t a)
{
	bool grow = a.to > a.from;
	hak_sayf("[TLS_CACHE] %s class %u: %u -> %u slots (%s_count=%u)\n", grow ? "Grow" : "Shrink", a.class, a.from, a.to,
	         grow ? "grow" : "shrink", a.count);
}

HAK_INLINE void hak_adapt_log(hak_adapted_t a) /* no claim: stderr may be slow */
{
	if (hak_unlikely(a.from != a.to) && hak_load(&hak_option.adaptive_log))
		hak_adapt_say(a);
}

/* The capacity of a stack that a slow path is about to use; 0: blocks of its class are not cached, or the limit is
 * reached. */
HAK_INLINE uint32_t hak_adapt_begin_locked(hak_heap_t *h, uint32_t c)
{
	const hak_class_t *k = &hak_class[c];
	uint32_t capacity = hak_heap_capacity(h, c);

	if (hak_likely(capacity) || !k->cached)
		return capacity;
	capacity = k->first;
	if (!hak_heap_charge(h, k, capacity)) {
		hak_count(&h->count.cache_refusals, 1u);
		if (!(capacity = k->tight))
			return 0;
		hak_cache_charge((uint64_t)capacity * k->size, true);
	}
	h->bin[c].young = true;
	hak_heap_serve_locked(h, c);
	hak_heap_stack_resize(h, c, capacity);
	return capacity;
}

/* The highest level in this period. */
static uint32_t hak_adapt_mark(const hak_heap_t *h, uint32_t c)
{
	uint32_t low = hak_heap_level(h, c), high = hak_heap_capacity(h, c);
	while (low < high) {
		uint32_t middle = (low + high + 1) / 2;
		if (h->slot[h->floor[c] + middle])
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}

/* The capacity that the stack should have, by what the period was like.  `aged`: it lasted a second. */
static uint32_t hak_adapt_target(const hak_heap_t *h, uint32_t c, uint32_t mark, bool aged)
{
	const hak_class_t *k = &hak_class[c];
	const hak_bin_t *b = &h->bin[c];
	uint32_t capacity = hak_heap_capacity(h, c);
	bool unused = !b->refills && !b->flushes && b->since == h->v[c];
	bool over = hak_load(&hak_cache.bytes) > (uint64_t)hak_load(&hak_option.cache_limit); /* it has been lowered */

	if (unused && capacity <= k->least)
		return 0;
	if (unused || over || (aged && mark * 5 < capacity))
		return hak_min32(capacity, hak_max32(capacity / 2, k->least));
	if (mark * 5 <= capacity * 4)
		return capacity;
	if (!b->refills)
		return hak_min32(capacity, hak_max32(capacity / 2, k->first));
	return hak_min32(capacity * 2, k->most);
}

/* The capacity that ACE has published is the least, of a stack in use, from its next refill on.  Returns what it is. */
static HAK_COLD uint32_t hak_adapt_raise_locked(hak_heap_t *h, uint32_t c, uint32_t to)
{
	uint32_t from = hak_heap_capacity(h, c);
	if (to <= from || !hak_heap_charge(h, &hak_class[c], to - from))
		return from;
	hak_heap_stack_resize(h, c, to);
	hak_count(&h->bin[c].grows, 1u);
	hak_count(&h->count.cache_grows, 1u);
	return to;
}

/* Ends the period of a stack in use, whose blocks may be flushed, and begins another; or lets it go on. */
static HAK_NOINLINE hak_adapted_t hak_adapt_locked(hak_heap_t *h, uint32_t c, bool aged)
{
	const hak_class_t *k = &hak_class[c];
	hak_bin_t *b = &h->bin[c];
	uint32_t from = hak_heap_capacity(h, c), mark = hak_adapt_mark(h, c), to = hak_adapt_target(h, c, mark, aged);
	uint32_t wanted = hak_min32(hak_target_capacity(k->base), k->most);
	if (hak_unlikely(to < wanted && wanted <= from && to >= k->least)) /* ACE knows better than to shrink it */
		to = wanted;
	uint32_t level = hak_heap_level(h, c);

	if (to > from && !hak_heap_charge(h, k, to - from)) {
		hak_count(&h->count.cache_refusals, 1u);
		to = from;
	}
	if (to == from && !aged)
		return (hak_adapted_t){.class = c};
	b->mark = (uint16_t)mark;
	b->young = true;
	if (to == from) {
		memset(&h->slot[h->floor[c] + level + 1], 0, (mark - level) * sizeof(void *));
		b->refills = b->flushes = 0;
		b->since = h->v[c];
		return (hak_adapted_t){.class = c};
	}
	if (to > from) {
		hak_heap_stack_resize(h, c, to);
		hak_count(&b->grows, 1u);
		hak_count(&h->count.cache_grows, 1u);
		return (hak_adapted_t){c, from, to, b->grows};
	}
	if (level > to / 2) /* there is to be room for some frees */
		hak_heap_flush_locked(h, c, level - to / 2);
	if (to)
		hak_heap_stack_resize(h, c, to);
	else
		hak_heap_stack_reset(h, c);
	hak_count(&b->shrinks, 1u);
	hak_count(&h->count.cache_shrinks, 1u);
	return (hak_adapted_t){c, from, to, b->shrinks};
}

/* The same after a refill or a flush, if it is time. */
HAK_INLINE hak_adapted_t hak_adapt_maybe_locked(hak_heap_t *h, uint32_t c, bool due)
{
	if (hak_likely(!due) || !hak_heap_capacity(h, c) || !hak_load(&hak_option.adaptive_sizing))
		return (hak_adapted_t){.class = c};
	return hak_adapt_locked(h, c, false);
}

/* Ends the periods that are a second old.  Owner, no claim. */
static HAK_COLD void hak_adapt_all(hak_heap_t *h)
{
	for (uint32_t c = 0; (c = hak_heap_served(h, c)) < HAK_CLASS_COUNT; c++) {
		hak_adapted_t a = {.class = c};
		if (!hak_heap_capacity(h, c))
			continue;
		if (!h->bin[c].young) {
			hak_claim_own(h);
			a = hak_adapt_locked(h, c, true);
			hak_unclaim(h);
			hak_adapt_log(a);
		}
		h->bin[c].young = false;
	}
}

/* ================================================ refill and flush ============================================= */

/* Takes over an orphan of class c that has room, if the shard has one.  Claim of h, and lock of the shard. */
static void hak_heap_adopt_locked(hak_heap_t *h, hak_shard_t *shard, uint32_t c)
{
	const hak_class_t *k = &hak_class[c];
	hak_slab_t *s = shard->orphan[c].head;
	uint64_t bytes;

	if (!s)
		return;
	bytes = (uint64_t)s->used * k->size;
	hak_orphan_delist_locked(shard, s);
	hak_count(&shard->orphans[c], -1ull);
	hak_count(&shard->orphan_used[c], -(uint64_t)s->used);
	hak_words_set(s->unit, s->len, h->tag | c);
	hak_heap_enlist_locked(h, s, k);
	hak_heap_serve_locked(h, c);
	hak_count(&h->bin[c].used, s->used);
	h->used_bytes[k->tier] += bytes;
	h->told_bytes[k->tier] += bytes;
	h->told_low[k->tier] += bytes;
	hak_count(&h->count.slabs_adopted, 1u);
	hak_count(&h->bin[c].slabs, 1u);
}

HAK_INLINE bool hak_bin_has_room(const hak_bin_t *b) { return b->current || b->partial.head; }

static void hak_heap_make_slab_locked(hak_heap_t *h, uint32_t c, uint32_t u, uint32_t units)
{
	hak_slab_init(u, units, c);
	hak_words_set(u, units, h->tag | c);
	hak_heap_serve_locked(h, c);
	hak_heap_enlist_locked(h, hak_slab_of(u), &hak_class[c]);
	hak_count(&h->count.slabs_new, 1u);
	hak_count(&h->bin[c].slabs, 1u);
}

static bool hak_heap_use_unit_locked(hak_heap_t *h, uint32_t c) /* one that is at hand: there is one */
{
	uint32_t n = h->units - 1;
	hak_store(&h->units, n);
	hak_heap_make_slab_locked(h, c, h->unit[n], 1);
	return true;
}

/* Puts a slab with room into the partial list of class c: an orphan, else free units, else new memory.  A thread that
 * goes on with another's work needs orphans of many classes: it gets one for each class that its heap has ever served.
 * False: out of memory. */
static HAK_NOINLINE bool hak_heap_new_slab_locked(hak_heap_t *h, uint32_t c)
{
	uint32_t units = hak_slab_units(&hak_class[c]), u;
	hak_bin_t *b = &h->bin[c];
	bool zero;
	hak_shard_t *shard;

	if (units == 1 && h->units && !h->shard && hak_load(&hak_page.orphaned[c]) == 0) /* one that comes now is for the next time */
		return hak_heap_use_unit_locked(h, c);
	shard = hak_orphan_find(h->shard ? hak_shard_numbered(h->shard - 1) : hak_shard_for(0, h->id), c);
	hak_heap_adopt_locked(h, shard, c);
	if (b->partial.head) {
		for (uint32_t d = 0; (d = hak_heap_served(h, d)) < HAK_CLASS_COUNT; d++)
			if (h->bin[d].misses && !hak_bin_has_room(&h->bin[d]))
				hak_heap_adopt_locked(h, shard, d);
	} else if ((u = hak_run_alloc_locked(&shard, units, hak_option.tiny_use_superslab ? 1 : HAK_SUPER_UNITS, &zero, hak_os_now()))) {
		hak_heap_make_slab_locked(h, c, u, units);
	}
	hak_unlock(&shard->lock);
	return b->partial.head || (units == 1 && h->units && hak_heap_use_unit_locked(h, c));
}

/* Takes up to n blocks of class c out of h's slabs, as hak_slab_take does. */
static uint32_t hak_heap_take_locked(hak_heap_t *h, uint32_t c, void **end, uint32_t n)
{
	const hak_class_t *k = &hak_class[c];
	hak_bin_t *b = &h->bin[c];
	uint32_t got = 0, carved, carves = 0;

	while (got < n) {
		hak_slab_t *s = b->current;
		if (s) {
			if (HAK_HARDENED && n == 1 && s->free) {
				end[-1] = hak_guard_take(s, k, h->v[c]);
				got = 1;
			} else {
				got += hak_slab_take(s, k, end - got, n - got, &carved);
				carves += carved;
			}
			if (hak_slab_has_room(s, k))
				break;
			hak_heap_delist_locked(h, s);
			hak_heap_enlist_locked(h, s, k);
		}
		if (!b->partial.head && (got || !hak_heap_new_slab_locked(h, c)))
			break;
		s = b->partial.head;
		hak_list_remove(&b->partial, s);
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

/* Whether free units have been at hand in h for so long that they should go. */
static bool hak_heap_has_old_units(const hak_heap_t *h, uint64_t now)
{
	return hak_load(&h->units) && now > hak_load(&h->units_stamp) + hak_target_purge();
}

/* Whether slabs of a thread that has ended have waited in h for long. */
static bool hak_heap_is_left(const hak_heap_t *h, uint64_t now)
{
	return hak_load(&h->kept) != HAK_KEPT_NOT && now >= hak_load(&h->kept_stamp) + HAK_KEPT_MS;
}

/* OS pages of a heap struct that no thread uses: the stacks. */
static size_t hak_heap_purge_stacks(hak_heap_t *h)
{
	uintptr_t from = hak_round_up((uintptr_t)h->slot, hak_boot.os_page);
	uintptr_t to = (uintptr_t)(h->slot + hak_boot.slots) & ~(uintptr_t)(hak_boot.os_page - 1);
	return from < to && hak_os_purge((void *)from, to - from) ? to - from : 0;
}

/* Slabs of a thread that has ended, and that no other has used since, go to whoever needs them.  Returns whether too
 * much is kept now. */
static HAK_COLD bool hak_heap_break_up_locked(hak_heap_t *h)
{
	bool waits = h->kept == HAK_KEPT_WAITING, over;
	if (waits)
		hak_heap_flush_all_locked(h);
	over = hak_heap_disown_locked(h, h->kept_stamp);
	if (waits)
		h->lost = 0; /* there is nothing in its stacks to sort out */
	if (waits && hak_load(&hak_heaps.idle) >= HAK_KEPT_HEAPS)
		hak_heap_purge_stacks(h);
	return over;
}

/* Memory is short: what is left for the next threads, and what is kept, takes room.  Returns whether there was any. */
static HAK_COLD bool hak_heap_break_up_all(void)
{
	bool any = false;
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		if (!h || hak_load(&h->kept) != HAK_KEPT_WAITING)
			continue;
		hak_claim(h);
		if (h->kept == HAK_KEPT_WAITING) { /* still */
			hak_heap_break_up_locked(h);
			any = true;
		}
		hak_unclaim(h);
	}
	return hak_whale_purge(UINT64_MAX) + hak_page_purge(UINT64_MAX, false) || any;
}

/* Blocks that have lain in the inbox of an idle thread for long go back to their slabs: few as they are, each may
 * hold a slab.  And what a thread has left behind is not kept for long.  A few heaps are looked at in a call, in turn,
 * and one is helped. */
static HAK_COLD void hak_heap_help(hak_heap_t *self, uint64_t now)
{
	uint32_t made = hak_load_acquire(&hak_heaps.made);
	hak_batch_t *stray = NULL;
	hak_heap_t *h = NULL;
	bool over = false, idle = false;
	uint64_t stamp;

	for (uint32_t i = 0; i < HAK_HELP_LOOKED && i < made; i++) {
		h = hak_heap_by_id(HAK_OWNER_FIRST + self->helped++ % made);
		idle = h && h != self && (hak_inbox_is_stale(h, now) || hak_heap_is_left(h, now));
		if (idle || (h && hak_heap_has_old_units(h, now)))
			break;
		h = NULL;
	}
	if (!h)
		return;
	hak_claim(h);
	stamp = hak_load(&h->inbox_stamp);
	if (hak_heap_has_old_units(h, now))
		hak_heap_release_units_locked(h);
	if (idle && hak_inbox_is_stale(h, now)) { /* still */
		stray = hak_heap_drain_locked(h, false, self, NULL);
		over = hak_heap_disown_locked(h, stamp);
		hak_count(&self->count.inboxes_helped, 1u);
	} else if (idle && hak_heap_is_left(h, now)) {
		over = hak_heap_break_up_locked(h);
	}
	hak_unclaim(h);
	hak_batch_reroute(self, stray);
	if (over)
		hak_page_purge(0, false);
}

/* Whether the figures that others see are old, or much has changed since: a program may sleep from here on, and what is
 * shown then should be near what it has. */
static HAK_COLD bool hak_watch_is_due(void)
{
	uint64_t used = hak_gauge_sum(), shown = hak_load(&hak_watch.shown), apart = used > shown ? used - shown : shown - used;
	return hak_os_now() >= hak_load(&hak_watch.next)
	    || (apart > shown / HAK_WATCH_PART + HAK_WATCH_BYTES && hak_os_ns(CLOCK_MONOTONIC) >= hak_load(&hak_watch.soon));
}

/* Every so many slow paths: post what has been pending for long, and give back what has been free for long. */
static HAK_COLD void hak_heap_tick_slow(hak_heap_t *h)
{
	uint64_t now = hak_os_now(), age = hak_target_purge();

	if (now - h->out_stamp >= HAK_STALE_MS) {
		h->out_stamp = now;
		hak_heap_post_all(h);
	}
	h->tick = HAK_TICK;
	hak_heap_help(h, now);
	hak_shard_watch(now);
	if (now - h->period_stamp >= HAK_PERIOD_MS && hak_load(&hak_option.adaptive_sizing)) {
		h->period_stamp = now;
		hak_adapt_all(h);
	}
	if (hak_page_is_due(now - age))
		hak_page_purge(now - age, false);
	if (hak_load(&hak_bigcache.bytes[HAK_BIG_WHALE]))
		hak_whale_purge(now - age);
	if (hak_load(&hak_bigcache.stamp) != UINT64_MAX)
		hak_big_shrink();
	void (*act)(void) = hak_load(&hak_watch.act);
	if (hak_unlikely(act != NULL) && (hak_load(hak_load(&hak_watch.look)) || hak_watch_is_due()))
		act();
}

HAK_INLINE void hak_heap_tick(hak_heap_t *h) /* owner, no claim */
{
	if (hak_unlikely((h->tick -= HAK_TICK_EACH) < 0) || hak_unlikely(hak_load(hak_load(&hak_watch.look)) != 0))
		hak_heap_tick_slow(h);
}

static HAK_COLD void hak_watch_tick_slow(void (*act)(void))
{
	if (hak_load(hak_load(&hak_watch.look)) || (hak_add_shared(&hak_watch.ticks, 1u) % HAK_WATCH_TICK == 0 && hak_watch_is_due()))
		act();
}

/* A slow path that no heap counts, of large blocks and of threads without a heap.  No lock, no claim. */
HAK_INLINE void hak_watch_tick(void)
{
	void (*act)(void) = hak_load(&hak_watch.act);
	if (hak_unlikely(act != NULL))
		hak_watch_tick_slow(act);
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
		.capacity = (uint16_t)(h->top[c] - h->floor[c]), .class = hak_class[c].base,
		.from = !p ? HAK_FROM_NOTHING : !n ? HAK_FROM_INBOX : carved > n / 2 ? HAK_FROM_CARVE : HAK_FROM_BITMAP};
	b->untold_refills = b->untold_flushes = 0;
	hak_ring_put_locked(h->ring, &e);
}

/* The stack of class c is empty: fill it, and return one more block.  NULL: out of memory.  Owner. */
static HAK_NOINLINE void *hak_heap_refill(hak_heap_t *h, uint32_t c)
{
	const hak_class_t *k = &hak_class[c];
	hak_bin_t *b = &h->bin[c];
	void **block, *p;
	hak_batch_t *stray;
	hak_adapted_t adapted = {.class = c};
	uint32_t n, got = 0, at, capacity, mark;
	uint64_t carved = h->count.refill_carve_blocks;

	capacity = (uint32_t)(h->top[c] - h->floor[c]);
	hak_claim(h);
	h->left_alone = 0;
	hak_store(&h->kept, (uint32_t)HAK_KEPT_NOT); /* it was not HAK_KEPT_WAITING: there is a thread */
	hak_adapt_begin_locked(h, c);
	stray = hak_heap_drain_locked(h, true, h, NULL);
	b->refills++;
	if (hak_likely(!h->lost)) /* else its stacks may not be flushed: the next overflow, or a second, changes that */
		adapted = hak_adapt_maybe_locked(h, c, b->refills % HAK_PERIOD_REFILLS == 0);
	capacity = hak_heap_capacity(h, c);
	if (hak_unlikely(capacity && capacity < hak_min32(hak_target_capacity(k->base), k->most)))
		capacity = hak_adapt_raise_locked(h, c, hak_min32(hak_target_capacity(k->base), k->most));
	at = (uint32_t)(h->v[c] & 0xFFFF);
	p = h->slot[at];
	if (p) { /* the inbox had some */
		hak_count(&h->count.refills_early, 1u);
		hak_store(&h->v[c], h->v[c] + 0xFFFF);
		hak_count(&b->misses, 1u);
		hak_count(&b->flushed, 1u); /* it was put there, by the inbox or a thread before this one, and is taken out */
	} else {
		n = hak_min32(hak_target_batch(k->base), capacity / 2); /* none with room for one: that is for the next free */
		block = &h->slot[at]; /* the NULL below the stack is the place of one: no stack of the thread's own is needed */
		mark = n && !block[n] ? hak_adapt_mark(h, c) : n;
		got = hak_heap_take_locked(h, c, block + n + 1, n + 1);
		if (got) {
			if (HAK_HARDENED)
				hak_guard_mix(block + n + 1 - got, got, h->v[c]);
			p = block[n];
			memmove(block + 1, block + n + 1 - got, (got - 1) * sizeof *block);
			*block = NULL;
			mark = hak_max32(mark, got - 1); /* fewer than there was place for: what this period has not reached is NULL again */
			if (mark < n)
				memset(block + mark + 1, 0, (n - mark) * sizeof *block);
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
	if (hak_unlikely(h->ring != NULL) && c < HAK_CLASSES) /* groups are a user's, who has said what he wants */
		hak_heap_tell_ace_locked(h, c, p, got, h->count.refill_carve_blocks - carved);
	hak_unclaim(h);
	if (hak_unlikely(stray != NULL))
		hak_batch_reroute(h, stray);
	hak_adapt_log(adapted);
	hak_heap_tick(h);
	return p;
}

/* The stack of class c is full, or the class has none.  Owner. */
static HAK_NOINLINE void hak_heap_overflow(hak_heap_t *h, uint32_t c, void *p)
{
	hak_bin_t *b = &h->bin[c];
	hak_adapted_t adapted = {.class = c};
	uint32_t capacity;

	hak_claim_own(h);
	if (hak_unlikely(hak_word(hak_unit_of(p)) != (h->tag | c))) { /* disowned since we looked */
		hak_count(&h->count.overflows_early, 1u);
		hak_unclaim(h);
		hak_remote_send(h, p, hak_word(hak_unit_of(p)), false);
		return;
	}
	capacity = hak_adapt_begin_locked(h, c);
	if (capacity == 0) {
		hak_count(&b->direct, 1u);
		hak_heap_put_locked(h, p, c, true);
	} else {
		if (hak_heap_level(h, c) == capacity) {
			hak_heap_flush_locked(h, c, (capacity + 1) / 2);
			hak_count(&h->count.flushes, 1u);
			b->flushes++;
			b->untold_flushes++;
			adapted = hak_adapt_maybe_locked(h, c, !b->refills && b->flushes >= HAK_PERIOD_FLUSHES);
		}
		hak_heap_push(h, c, p);
	}
	hak_heap_settle_maybe_locked(h, true);
	hak_unclaim(h);
	hak_adapt_log(adapted);
	hak_heap_tick(h);
}

/* Fills the stacks of tiny and l2 classes as a refill would, before their first use.  `touch`: the memory has its OS
 * pages then, too.  What cannot be had is left out.  Owner, no claim. */
static HAK_COLD void hak_heap_warm(hak_heap_t *h, bool touch)
{
	void *block[HAK_BATCH_MOST];
	int saved = errno;

	for (uint32_t c = 0, n, got = 1; got && c < HAK_CLASSES && hak_class[c].tier != HAK_TIER_l25; c++) {
		const hak_class_t *k = &hak_class[c];
		if (!k->cached)
			continue;
		hak_claim(h);
		n = hak_adapt_begin_locked(h, c) - hak_heap_level(h, c);
		n = hak_min32(k->batch, (n + 1) / 2);
		if (n) {
			got = hak_heap_take_locked(h, c, block + n, n);
			hak_heap_push_all(h, c, block + n - got, got);
			hak_count(&h->bin[c].filled, got);
			hak_count(&h->count.prewarm_blocks, got);
		}
		hak_unclaim(h);
		for (uint32_t i = n > got ? n - got : 0; touch && i < n; i++)
			for (size_t at = 0; at < k->size; at += hak_boot.os_page) {
				volatile char *byte = (volatile char *)block[i] + at;
				*byte = *byte; /* a free block's content may be looked at: it stays */
			}
	}
	errno = saved;
}

/* ============================================ thread start and end ============================================= */

static HAK_START hak_heap_t *hak_heap_make_locked(uint32_t id) /* lock: heaps.  NULL: out of memory */
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
 * Or, if that may be and the slabs are well used or few, all of it stays together for the next thread: threads that end
 * and begin in turn would else pass each slab on by itself.  Where many are mostly free they are not kept, as others can
 * fill the holes; the few of all heaps that wait are no more than the option retain has kept anyway.  Owner, or fork's child for a thread that it has not got.  Returns whether h keeps them. */
static HAK_COLD bool hak_heap_abandon(hak_heap_t *h, bool keep)
{
	hak_batch_t *stray;
	bool over = false;
	uint64_t bytes;

	hak_heap_post_all(h);
	hak_claim_own(h);
	stray = hak_heap_drain_locked(h, false, NULL, HAK_CLOSED);
	bytes = keep ? hak_heap_slab_bytes(h) : 0;
	keep = keep && (hak_heap_used_locked(h) > bytes / 2 || bytes <= hak_target_retain() / HAK_KEPT_HEAPS);
	if (keep) {
		hak_heap_keep_locked(h, HAK_KEPT_WAITING);
	} else {
		hak_heap_flush_all_locked(h);
		over = hak_heap_disown_locked(h, hak_os_now());
		h->lost = 0; /* there is nothing in its stacks to sort out */
	}
	hak_unclaim(h);
	hak_batch_reroute(NULL, stray);
	hak_heap_post_all(h); /* what sorting the stacks out has put there */
	if (over)
		hak_page_purge(0, false);
	if (!keep) {
		hak_batch_collect(h);
		hak_batch_shed(h, 0); /* empty batches of a thread that is gone are for everybody */
	}
	return keep;
}

/* Its thread does not need h any more.  `exited`: since it ends. */
static HAK_COLD void hak_heap_retire(hak_heap_t *h, bool exited)
{
	bool keep = hak_heap_abandon(h, hak_load(&hak_heaps.kept) < HAK_KEPT_HEAPS);
	if (!keep && hak_load(&hak_heaps.idle) >= HAK_KEPT_HEAPS)
		hak_heap_purge_stacks(h);
	hak_lock(&hak_heaps.lock);
	hak_store(&h->thread, 0u);
	h->running = false;
	h->next_free = hak_heaps.free;
	hak_heaps.free = h;
	hak_store(&hak_heaps.idle, hak_heaps.idle + 1);
	hak_heaps.running--;
	hak_heaps.exited += exited;
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
	hak_self = hak_own = (hak_heap_t *)(uintptr_t)&hak_heap_dead; /* from here on every call takes the shared path */
	hak_heap_retire(h, true);
	errno = saved;
}

/* Runs once, at the first call that needs it: that may be before any constructor, and from inside the dynamic linker,
 * so nothing here may allocate. */
static HAK_START void hak_boot_init_slow(void)
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
	hak_shard_init();
	hak_lock(&hak_page.reserving);
	hak_range_reserve_locked(HAK_SUPER_UNITS);
	hak_unlock(&hak_page.reserving);
	hak_option_keep_texts();
	hak_site_init();
	hak_boot.has_key = pthread_key_create(&hak_boot.key, hak_heap_detach) == 0;
	hak_store_release(&hak_boot.ready, 2u);
	errno = saved;
}

HAK_INLINE void hak_boot_init(void)
{
	if (hak_unlikely(hak_load_acquire(&hak_boot.ready) != 2))
		hak_boot_init_slow();
}

/* h, which waits for a thread and is on no list any more, becomes the calling thread's. */
static HAK_START void hak_heap_begin(hak_heap_t *h)
{
	hak_claim(h);
	hak_store(&h->inbox, NULL);
	if (h->kept == HAK_KEPT_WAITING)
		hak_heap_keep_locked(h, HAK_KEPT_UNUSED);
	hak_unclaim(h);
	hak_store(&h->thread, (uint32_t)syscall(SYS_gettid));
	h->tick = HAK_TICK;
	h->dying = 0;
	hak_own = h;
	if (!hak_option.sites)
		hak_self = h;
}

/* The calling thread's heap, made or taken over if it has none yet.  NULL: use the shared one. */
static HAK_NOINLINE hak_heap_t *hak_heap_attach(void)
{
	hak_heap_t *h = hak_own;
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
		hak_store(&hak_heaps.idle, hak_heaps.idle - 1);
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
	hak_heap_begin(h);
	if (pthread_setspecific(hak_boot.key, h)) { /* may allocate: hak_own is set.  Without it nobody sees the thread end */
		hak_self = hak_own = HAK_HEAP_START;
		hak_heap_retire(h, true);
		return NULL;
	}
	if (hak_unlikely(hak_load(&hak_option.prewarm_tls)) && !hak_fork_is_here())
		hak_heap_warm(h, hak_load(&hak_option.prewarm_tls) > 1);
	return h;
}

/* A thread that needs a slab of class c, while heaps of ended threads wait: if one has more than its own, they change
 * places, and what the thread has had so far waits or goes.  Else the waiting one is broken up for whoever needs a slab.
 * Threads are often started just before the one ends whose work they go on with.  Returns the thread's heap. */
static HAK_COLD hak_heap_t *hak_heap_trade(hak_heap_t *h, uint32_t c)
{
	hak_heap_t **at, *k;
	uint8_t dying = h->dying;
	bool over = false, trade = false;
	uint64_t own;

	hak_claim(h);
	own = hak_bin_has_room(&h->bin[c]) || hak_load(&h->inbox) ? UINT64_MAX : hak_heap_slab_bytes(h);
	hak_unclaim(h);
	if (own == UINT64_MAX || hak_fork_is_here())
		return h;
	hak_lock(&hak_heaps.lock);
	for (at = &hak_heaps.free; (k = *at) && hak_load(&k->kept) != HAK_KEPT_WAITING; at = &k->next_free)
		;
	if (k) {
		hak_claim(k);
		trade = k->kept == HAK_KEPT_WAITING && hak_heap_slab_bytes(k) > own;
		if (k->kept == HAK_KEPT_WAITING && !trade)
			over = hak_heap_break_up_locked(k);
		hak_unclaim(k);
	}
	if (trade) {
		*at = k->next_free;
		hak_store(&hak_heaps.idle, hak_heaps.idle - 1);
		k->running = true;
		hak_heaps.running++;
	}
	hak_unlock(&hak_heaps.lock);
	if (over)
		hak_page_purge(0, false);
	if (!trade)
		return h;
	pthread_setspecific(hak_boot.key, k); /* the key has a value in this thread already: there is room for it */
	hak_heap_begin(k);
	k->dying = dying;
	hak_heap_retire(h, false);
	return k;
}

/* ================================================= large runs ================================================== */

static void hak_large_count_locked(hak_shard_t *shard, int64_t units)
{
	hak_count(&shard->count.large_units, (uint64_t)units);
	hak_gauge_book(&shard->count.large_units_alloced, &shard->count.large_units_freed, units);
	hak_gauge_add(HAK_TIER_whale, units * (int64_t)HAK_UNIT);
}

static void hak_large_gone_locked(hak_shard_t *shard)
{
	hak_count(&shard->count.large_blocks, -1ull);
	hak_count(&shard->count.large_frees, 1u);
}

/* A block out of BigCache; `mapped`: a mapping of its own.  NULL: it has none that fits. */
static void *hak_large_reuse(size_t len, size_t align, uint32_t site, bool mapped)
{
	hak_big_t *b = hak_big_take(len, align, site, mapped);
	char *base = NULL;

	if (b && b->kind == HAK_BIG_RUN) {
		hak_slab_t *r = hak_big_run(b);
		base = r->base;
		r->site = site;
	} else if (b) {
		base = hak_whale_reuse(hak_big_whale(b));
	}
	if (b)
		hak_page_peak();
	return base;
}

/* What a call returns that cannot be served. */
static HAK_COLD void *hak_refuse(int error)
{
	hak_count_own(refusals);
	errno = error;
	return NULL;
}

/* A block above 1 MiB, or of an alignment above a unit, for a call site.  `number`: the shard that a rule names, and 1.
 * *zero: its memory was never used. */
static HAK_NOINLINE void *hak_large_alloc(size_t n, size_t align, uint64_t at, uint32_t number, bool *zero)
{
	size_t units = (n + HAK_UNIT - 1) >> HAK_UNIT_SHIFT, align_units = align > HAK_UNIT ? align >> HAK_UNIT_SHIFT : 1;
	uint32_t site = hak_big_site(at);
	hak_slab_t *r = NULL;
	void *p;

	if (n > PTRDIFF_MAX - HAK_SUPER || align > PTRDIFF_MAX - HAK_SUPER)
		return hak_refuse(ENOMEM);
	hak_boot_init();
	if (units == 0)
		units = 1;
	*zero = false;
	if (n > HAK_CLASS_MAX) {
		size_t len = units <= HAK_RUN_MAX / HAK_UNIT ? units << HAK_UNIT_SHIFT : hak_round_up(n, hak_boot.os_page);
		if ((p = hak_large_reuse(len, align, site, false)))
			return p;
	}
	/* No run, and no mapping: what was kept is free by then, and the second look for a run may find it. */
	for (int turn = 0; turn < 2; turn++) {
		if (units + align_units <= HAK_RUN_MAX / HAK_UNIT) {
			/* Without a site those of all threads are in one shard, where they join. */
			hak_shard_t *shard = number ? hak_shard_numbered(number - 1) : hak_shard_for(at, 0);
			hak_lock(&shard->lock);
			uint64_t now = hak_os_now();
			uint32_t u = hak_run_alloc_locked(&shard, (uint32_t)units, (uint32_t)align_units, zero, now);
			if (u) {
				r = hak_slab_of(u);
				r->len = (uint32_t)units;
				r->site = site;
				r->big.key = NULL;
				hak_words_set(u + 1, (uint32_t)units - 1, HAK_RUN_BODY);
				hak_hg_relaxed(hak_unit[u]); /* free changes it without the shard's lock */
				hak_words_set(u, 1, HAK_RUN_HEAD);
				hak_count(&shard->count.large_blocks, 1u);
				hak_count(&shard->count.large_allocs, 1u);
				hak_large_count_locked(shard, (int64_t)units);
			}
			hak_unlock(&shard->lock);
			hak_shard_watch(now);
			if (r)
				return r->base;
		}
		if (!turn && (p = hak_whale_alloc(n ? n : 1, align > hak_boot.os_page ? align : hak_boot.os_page, site))) {
			*zero = true;
			return p;
		}
		if (!turn)
			hak_heap_break_up_all();
	}
	return hak_refuse(ENOMEM);
}

/* The same for a site with a rule: what is to be kept for a time of its own is a mapping of its own. */
static HAK_COLD void *hak_large_alloc_by(size_t n, size_t align, uint64_t at, bool *zero, uint64_t policy)
{
	uint64_t keep = hak_policy_keep(policy);
	size_t page = hak_boot.os_page;
	void *p;
	if (!keep || n <= HAK_CLASS_MAX || n > PTRDIFF_MAX - HAK_SUPER || align > PTRDIFF_MAX - HAK_SUPER)
		return hak_large_alloc(n, align, at, hak_policy_shard(policy), zero);
	*zero = false;
	if (!(p = hak_large_reuse(hak_round_up(n, page), align, hak_big_site(at), true))) {
		*zero = true;
		if (!(p = hak_whale_alloc(n, align > page ? align : page, hak_big_site(at))))
			return hak_large_alloc(n, align, at, hak_policy_shard(policy), zero);
	}
	hak_whale_keep_for(p, keep);
	return p;
}

static HAK_NOINLINE void hak_large_free(void *p, uint32_t u)
{
	hak_slab_t *r = hak_slab_of(u);
	uint32_t units = r->len, word = HAK_RUN_HEAD;
	size_t len = (size_t)units << HAK_UNIT_SHIFT;
	hak_shard_t *shard;
	bool over;

	if (r->base != p)
		hak_die("free", p, HAK_ERR_INTERIOR);
	if (!hak_cas(&hak_unit[u], &word, HAK_RUN_KEPT)) /* of two threads that free it, one gets here */
		hak_die("free", p, HAK_ERR_ALREADY_FREE);
	if (len > HAK_CLASS_MAX && !hak_page_is_forbidden() && !hak_option.use_registry
	    && hak_big_put(&r->big, HAK_BIG_RUN, len, r->site, hak_os_now(), false)) {
		hak_big_watch();
		return;
	}
	shard = hak_shard_lock(u);
	hak_large_gone_locked(shard);
	hak_count(&shard->count.large_units, -(uint64_t)units);
	hak_count(&shard->count.large_units_freed, units);
	hak_gauge_add(HAK_TIER_whale, -(int64_t)len);
	over = hak_run_release_locked(shard, u, units, hak_os_now());
	hak_unlock(&shard->lock);
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
	hak_shard_t *shard = hak_shard_lock(u);

	len = r->len;
	if (units < len) {
		r->len = units;
		hak_index_cut(r->base, (size_t)units << HAK_UNIT_SHIFT, (size_t)(len - units) << HAK_UNIT_SHIFT);
		hak_large_count_locked(shard, -(int64_t)(len - units));
		over = hak_run_release_locked(shard, u + units, len - units, now);
	} else if (units > len) {
		more = units - len;
		hak_run_unkeep_at_locked(shard, u + len);
		fits = hak_shard_has_free_locked(shard, u + len) && (next = hak_slab_of(u + len))->len >= more
		       && hak_run_permit_locked(next, 0, more);
		if (fits) {
			hak_run_cut_locked(shard, next, 0, more);
			hak_run_use_locked(shard, u + len, more);
			hak_words_set(u + len, more, HAK_RUN_BODY);
			r->len = units;
			hak_index_resize(r->base, (size_t)units << HAK_UNIT_SHIFT);
			hak_large_count_locked(shard, (int64_t)more);
		}
	}
	hak_unlock(&shard->lock);
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
	w->site = hak_slab_of(u)->site;
	if (moved && !base) /* back by hand: the system may have no mapping left to move it in */
		memcpy(p, moved, len);
	hak_lock(&hak_whales.lock);
	if (base) {
		hak_whales.allocs++;
		hak_whale_count_locked((int64_t)(to - len)); /* the rest of it has moved from one count to the other */
		hak_whale_enter_locked(w);
	} else if (!moved) {
		hak_whale_forget_locked(w);
	}
	hak_unlock(&hak_whales.lock);
	if (moved && !base)
		hak_whale_unmap(w);
	if (base) {
		hak_shard_t *shard = hak_shard_lock(u);
		uint32_t units = hak_slab_of(u)->len;
		hak_large_gone_locked(shard);
		hak_count(&shard->count.large_units, -(uint64_t)units);
		hak_dirty_set(u, units, false);
		hak_run_release_locked(shard, u, units, hak_os_now());
		hak_unlock(&shard->lock);
	}
	return base;
}

/* ================================================== slow paths ================================================= */

/* v holds the stack's index in its low 16 bits and the count of allocations above: a pop adds 1 to the count and
 * takes 1 from the index in one addition, 0xFFFF.  Below each stack stands a NULL, so an empty one needs no test of
 * its own. */
#define HAK_POP 0xFFFF
#define HAK_PUSH 1

/* One block of the heap that all threads without one share. */
static HAK_NOINLINE void *hak_shared_alloc(uint32_t c)
{
	hak_heap_t *h = hak_heap_shared();
	void *p = NULL;

	if (!h)
		return NULL;
	hak_claim(h);
	if (hak_heap_take_locked(h, c, &p + 1, 1)) {
		hak_store(&h->v[c], h->v[c] + 0x10000);
		hak_count(&h->bin[c].misses, 1u);
	}
	hak_unclaim(h);
	hak_watch_tick();
	return p;
}

/* A block of the stack of class c, and with an empty one of its slabs.  Owner. */
static void *hak_heap_alloc(hak_heap_t *h, uint32_t c)
{
	uint64_t v = h->v[c];
	void *p = h->slot[v & 0xFFFF];
	if (!p)
		return hak_heap_refill(h, c);
	hak_store(&h->v[c], v + HAK_POP);
	return p;
}

/* A block as a rule wants it, yet to be opened. */
static HAK_NOINLINE void *hak_block_alloc_by(size_t n, size_t align, uint64_t at, bool *zero, uint64_t policy)
{
	hak_heap_t *h;
	void *p;

	*zero = false;
	if (n > HAK_CLASS_MAX || align > HAK_UNIT)
		return hak_large_alloc_by(n, align, at, zero, policy);
	uint32_t c = hak_policy_class(policy, hak_class_of(n));
	do {
		h = hak_heap_attach();
		if (h)
			h->shard = hak_policy_shard(policy);
		p = h ? hak_heap_alloc(h, c) : hak_shared_alloc(c);
		if (h)
			h->shard = 0;
	} while (hak_unlikely(!p) && hak_heap_break_up_all());
	return p ? p : hak_refuse(ENOMEM);
}

/* Where there are rules or sites are captured: a block for the site of a row, whose caller asked for so many bytes of
 * its n. */
static HAK_NOINLINE void *hak_site_alloc(size_t n, size_t align, uint64_t at, bool *zero, size_t asked, uint32_t site)
{
	void *p = hak_block_alloc_by(n, align, at, zero, hak_site_policy(site));
	if (p)
		hak_site_note(site, p, asked);
	return p;
}

/* A block above all classes, or of an alignment above a unit: for the caller at that address. */
static HAK_NOINLINE void *hak_large_alloc_for(size_t n, size_t align, bool *zero, size_t asked, const void *caller)
{
	hak_boot_init();
	if (hak_unlikely(hak_option.sites))
		return hak_site_alloc(n, align, (uintptr_t)caller, zero, asked, hak_site_meet((uintptr_t)caller, true));
	return hak_large_alloc(n, align, 0, 0, zero);
}

/* The stack was empty, the size is above every class, the thread has no heap yet, or sites are captured.  The size comes,
 * not the class: before the first call has run the size tables are empty. */
static HAK_NOINLINE void *hak_malloc_slow(size_t n, size_t asked, const void *caller)
{
	hak_heap_t *h;
	void *p;
	bool zero;

	hak_boot_init();
	if (hak_unlikely(hak_option.sites))
		return hak_guard_open_any(hak_site_alloc(n, 1, (uintptr_t)caller, &zero, asked, hak_site_meet((uintptr_t)caller, true)), asked);
	if (n > HAK_CLASS_MAX) {
		p = hak_guard_open_any(hak_large_alloc(n, 1, 0, 0, &zero), asked);
		hak_watch_tick();
		return p;
	}
	do {
		h = hak_heap_attach();
		if (h && hak_unlikely(hak_load(&hak_heaps.kept) != 0))
			h = hak_heap_trade(h, hak_class_of(n));
		p = h ? hak_heap_refill(h, hak_class_of(n)) : hak_shared_alloc(hak_class_of(n));
	} while (hak_unlikely(!p) && hak_heap_break_up_all());
	return hak_guard_open_any(hak_likely(p != NULL) ? p : hak_refuse(ENOMEM), asked);
}

/* What calloc does where malloc takes its slow path.  The system's memory is zero already. */
static HAK_NOINLINE void *hak_calloc_slow(size_t n, size_t asked, const void *caller)
{
	bool zero = false;
	void *p;

	if (asked <= HAK_CLASS_MAX) {
		p = hak_malloc_slow(n, asked, caller);
		return p ? memset(p, 0, asked) : p;
	}
	p = hak_large_alloc_for(n, 1, &zero, asked, caller);
	if (p && zero)
		hak_count_own(callocs_clean);
	return hak_guard_open_any(p && !zero ? memset(p, 0, asked) : p, asked);
}

static _Noreturn HAK_COLD void hak_free_bad(const void *p, const char *call)
{
	uint32_t u = hak_unit_of(p);
	bool ours = hak_unit_is_committed(u);
	uintptr_t base;
	hak_die(call, p, hak_lookup(p, &base) ? HAK_ERR_INTERIOR : ours ? HAK_ERR_ALREADY_FREE : HAK_ERR_FOREIGN);
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

/* A full stack, a block of another heap or of none, a large block, or no block at all; any block where sites are
 * captured. */
static HAK_NOINLINE void hak_free_slow(void *p)
{
	uint32_t u, word, owner;
	hak_heap_t *h;
	int saved = errno;

	if (hak_unlikely(hak_option.sites))
		hak_site_forget(p);
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
		hak_watch_tick();
	} else if (!(h = hak_free_heap(p, u, word))) {
		hak_block_free_anywhere(p, false);
		hak_watch_tick();
	} else if (owner != h->id) {
		hak_remote_send(h, p, word, false);
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

/* What is not a block of h: the heap of this thread, or one that is none and has no batches.  `from`: the word of its
 * unit less h's tag.  A function of its own, as it needs no stack. */
static HAK_NOINLINE void hak_free_other(void *p, size_t from, hak_heap_t *h)
{
	if (HAK_HARDENED || !hak_remote_add(h, p, (uint32_t)from + h->tag))
		hak_free_slow(p);
}

/* NULL, or what lies beyond the range that the fast path knows.  Likewise: a thread's end alone frees NULL 15 times. */
static HAK_NOINLINE void hak_free_far(void *p)
{
	if (p)
		hak_free_slow(p);
	else
		hak_count_own(frees_null);
}

/* =================================================== HOT PATHS ================================================= */

/* The address that an exported function returns to: whom its block is for.  HAK_INLINED says that of the function into
 * which a hot path is inlined, which asks for it where it is needed, and not before. */
#define HAK_CALLER __builtin_return_address(0)
#define HAK_INLINED ((const void *)0)

/* memset to 0.  What is called most is a few stores here, of which the middle ones may overlap: a call costs as much. */
HAK_INLINE void *hak_zero(void *p, size_t n)
{
	char *from = p;

	if (hak_unlikely(n - 16 > 64 - 16))
		return memset(p, 0, n);
	memset(from, 0, 16);
	memset(from + n - 16, 0, 16);
	if (n > 32) {
		hak_afresh(n);
		memset(from + 16, 0, 16);
		memset(from + n - 32, 0, 16);
	}
	return p;
}

/* A block of n bytes, for a caller that asked for so many. */
HAK_INLINE void *hak_hot_malloc_for(size_t n, size_t asked, const void *caller, bool zero)
{
	void *(*slow)(size_t, size_t, const void *) = zero ? hak_calloc_slow : hak_malloc_slow;
	hak_heap_t *h = hak_self;
	size_t c;

	if (hak_likely(n <= HAK_SMALL_MAX))
		c = hak_class_small[n];
	else if (n <= HAK_MID_MAX)
		c = hak_class_mid[(n + 255) >> 8];
	else if (n <= HAK_CLASS_MAX)
		c = hak_class_big[(n + 8191) >> 13];
	else
		return slow(n, asked, caller ? caller : HAK_CALLER);
	uint64_t v = hak_load(&h->v[c]);
	void *p = h->slot[v & 0xFFFF];
	hak_result(p);
	if (hak_unlikely(!p))
		return slow(n, asked, caller ? caller : HAK_CALLER);
	hak_afresh(c);
	hak_store(&h->v[c], v + HAK_POP);
	p = HAK_HARDENED ? hak_guard_open_hot(p, &hak_class[c], asked) : p;
	return zero ? hak_zero(p, asked) : p;
}

HAK_INLINE void *hak_hot_malloc(size_t n, const void *caller) { return hak_hot_malloc_for(hak_guard_room(n), n, caller, false); }

HAK_INLINE void hak_hot_free(void *p)
{
	hak_heap_t *h = hak_self;
	size_t u = ((uintptr_t)p - hak_fast.base) >> HAK_UNIT_SHIFT;

	if (hak_unlikely(u >= hak_fast.units))
		return hak_free_far(p);
	/* One load and one comparison: on a unit with blocks, owned by this heap, and of which class. */
	size_t c = (uint32_t)(hak_load(&hak_unit[u]) - h->tag);
	if (hak_unlikely(c > 255))
		return hak_free_other(p, c, h);
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
	hak_afresh(c);
	hak_store(&h->v[c], v + HAK_PUSH);
}

HAK_EXPORT void *hak_malloc(size_t n) { return hak_hot_malloc(n, HAK_INLINED); }
HAK_EXPORT void hak_free(void *p) { hak_hot_free(p); }

/* ================================================= derived calls =============================================== */

HAK_EXPORT void *hak_calloc(size_t count, size_t size)
{
	size_t n;

	if (hak_unlikely(__builtin_mul_overflow(count, size, &n)))
		return hak_refuse(ENOMEM);
	return hak_hot_malloc_for(hak_guard_room(n), n, HAK_INLINED, true);
}

/* Whether p, which lies on unit u of a slab of class k, is where a block begins. */
HAK_INLINE bool hak_block_begins(const void *p, uint32_t u, const hak_class_t *k)
{
	uint64_t offset = (uintptr_t)p % HAK_UNIT;
	if (k->units > 1)
		offset += (uint64_t)hak_slab_of(u)->back << HAK_UNIT_SHIFT;
	return ((offset * k->reciprocal) >> 40) * k->size == offset;
}

/* Bytes of the block at p that its caller may use, and those that it has room for.  Aborts if there is none. */
static size_t hak_block_size(const void *p, const char *call, size_t *room)
{
	uint32_t u = hak_unit_of(p), word = hak_word(u);
	size_t asked;

	if (hak_word_owner(word) >= HAK_OWNER_ORPHAN) {
		const hak_class_t *k = &hak_class[hak_word_class(word)];
		if (!hak_block_begins(p, u, k))
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

/* Where a heap remembers that the block at p came of a realloc that moved what had grown, and what it notes of it. */
HAK_INLINE uint16_t *hak_grown_place(hak_heap_t *h, const void *p, uint16_t *note)
{
	uint32_t bits = (uint32_t)((uintptr_t)p >> 3) * 0x9E3779B1u; /* the upper ones depend on all of them */
	*note = (uint16_t)(bits / HAK_GROWN);
	return &h->grown[bits >> (32 - __builtin_ctz(HAK_GROWN))];
}

/* The room to ask for where `want` is more than that of the block at p.  Who appends, and has moved before, will again:
 * a quarter more than there is halves the moves and the bytes copied.  A block that grows once gets what it was asked
 * for, and so does one that grows by more than a quarter.  free does not look here: where what had grown was freed, the
 * next block may be taken for it, and cost a quarter more. */
HAK_INLINE size_t hak_grown_room(hak_heap_t *h, const void *p, size_t want, size_t room)
{
	size_t more = room + room / 4;
	uint16_t note;
	return want < more && more <= HAK_CLASS_MAX && *hak_grown_place(h, p, &note) == note ? more : want;
}

/* What was at p has grown, and is at q.  The next block at p begins anew. */
HAK_INLINE void hak_grown_moved(hak_heap_t *h, const void *p, const void *q)
{
	uint16_t note, *place = hak_grown_place(h, p, &note);
	if (*place == note)
		*place = 0;
	place = hak_grown_place(h, q, &note);
	*place = note;
}

/* The block at p, made larger or smaller.  n > 0. */
static HAK_NOINLINE void *hak_block_resize(void *p, size_t n, const void *caller)
{
	size_t want = hak_guard_room(n), size, room;
	void *q;

	size = hak_block_size(p, "realloc", &room);
	if (room <= HAK_CLASS_MAX) { /* a class, or the run of a large alignment */
		if (want <= room && (want >= room / 2 || room <= 64)) {
			hak_count_own(reallocs_kept);
			return hak_guard_resize_any(p, n);
		}
	} else if (want > HAK_CLASS_MAX && want <= PTRDIFF_MAX - HAK_SUPER) {
		uint32_t u = hak_unit_of(p);
		if (HAK_HARDENED)
			hak_guard_check_for("realloc", p);
		if (hak_word(u) != HAK_RUN_HEAD) { /* a whale */
			if (want <= room && want >= room / 2) {
				hak_count_own(reallocs_kept);
				return hak_guard_resize_any(p, n);
			}
			q = hak_whale_resize(p, want);
		} else {
			bool grown = want <= HAK_RUN_MAX && hak_large_resize(u, (uint32_t)((want + HAK_UNIT - 1) >> HAK_UNIT_SHIFT));
			q = grown ? p : hak_large_to_whale(p, u, want);
		}
		if (q) {
			hak_count_own(reallocs_grown);
			return hak_guard_open_any(q, n);
		}
	}
	if (HAK_HARDENED)
		hak_guard_check_for("realloc", p);
	bool grows = want > room;
	if (grows)
		want = hak_grown_room(hak_own, p, want, room);
	uint32_t c = hak_word_class(hak_word(hak_unit_of(p)));
	if (c >= HAK_CLASSES && !hak_option.sites && hak_word_owner(hak_word(hak_unit_of(p))) >= HAK_OWNER_ORPHAN) {
		bool zero; /* a block of a group stays in it */
		q = hak_guard_open_any(hak_block_alloc_by(want, 1, 0, &zero, hak_policy_of_class(c)), n);
	} else {
		int saved = errno;
		q = hak_hot_malloc_for(want, n, caller, false);
		if (!q && want > hak_guard_room(n)) {
			errno = saved; /* what was refused was not asked for */
			q = hak_hot_malloc(n, caller);
		}
	}
	if (!q)
		return n <= size ? hak_guard_resize_any(p, n) : NULL; /* no block is too large to stay as it is */
	if (grows && hak_own->id) /* the heaps that stand for none are constant */
		hak_grown_moved(hak_own, p, q);
	memcpy(q, p, n < size ? n : size);
	hak_hot_free(p);
	return q;
}

/* Where sites are captured: from here on the block is its last caller's.  It is forgotten first, as another thread may
 * get its old place at once; what has moved by way of malloc is noted already. */
static HAK_COLD void *hak_site_resize(void *p, size_t n, const void *caller)
{
	uint64_t what = hak_site_forget(p);
	void *q = hak_block_resize(p, n, caller);
	if (q)
		hak_site_note(hak_site_meet((uintptr_t)caller, true), q, n);
	else
		hak_site_remember(p, what);
	return q;
}

static HAK_NOINLINE void *hak_realloc_slow(void *p, size_t n, const void *caller)
{
	if (!p)
		return hak_hot_malloc(n, caller);
	if (n == 0) {
		hak_hot_free(p);
		return NULL;
	}
	return hak_unlikely(hak_option.sites) ? hak_site_resize(p, n, caller) : hak_block_resize(p, n, caller);
}

/* A block of class c of h, this thread's heap, that has not the room for n: it moves at once if there is a block at hand,
 * and its own stack has a place.  In the stack it is still used (invariant 3), and only this thread takes it from there:
 * so it is copied last, and nothing has to be kept meanwhile. */
static HAK_NOINLINE void *hak_realloc_move(void *p, size_t n, const void *caller, hak_heap_t *h, size_t c)
{
	size_t room = hak_class[c].size, want = hak_grown_room(h, p, n, room);

	if (n <= room || want > HAK_CLASS_MAX || c >= HAK_CLASSES)
		return hak_realloc_slow(p, n, caller);
	uint32_t to = hak_class_of(want);
	uint64_t from_v = hak_load(&h->v[c]), to_v = hak_load(&h->v[to]);
	size_t at = from_v & 0xFFFF;
	void *q = h->slot[to_v & 0xFFFF];
	if (!q || at == h->top[c] || h->slot[at] == p)
		return hak_realloc_slow(p, n, caller);
	hak_store(&h->v[to], to_v + HAK_POP);
	h->slot[at + 1] = p;
	hak_store(&h->v[c], from_v + HAK_PUSH);
	hak_grown_moved(h, p, q);
	return memcpy(q, p, room);
}

/* Most calls append to a buffer that has the room: a block of this heap, which stays where it is if at least half of it
 * is wanted.  NULL has no unit, and n = 0 leaves more than half. */
HAK_INLINE void *hak_realloc_for(void *p, size_t n, const void *caller)
{
	hak_heap_t *h = hak_self;
	size_t u = ((uintptr_t)p - hak_fast.base) >> HAK_UNIT_SHIFT;

	if (HAK_HARDENED || hak_unlikely(u >= hak_fast.units))
		return hak_realloc_slow(p, n, caller ? caller : HAK_CALLER);
	size_t c = (uint32_t)(hak_load(&hak_unit[u]) - h->tag);
	if (hak_unlikely(c > 255) || hak_unlikely(!h->tag)) /* the latter is a heap that is none: the word may be one of nothing */
		return hak_realloc_slow(p, n, caller ? caller : HAK_CALLER);
	const hak_class_t *k = &hak_class[c];
	hak_afresh(k);
	if (hak_unlikely(!hak_block_begins(p, (uint32_t)u, k)))
		return hak_realloc_slow(p, n, caller ? caller : HAK_CALLER);
	if (hak_unlikely(k->size - n > k->size / 2))
		return hak_realloc_move(p, n, caller ? caller : HAK_CALLER, h, c);
	hak_count(&h->count.reallocs_kept, 1u);
	return p;
}

HAK_EXPORT void *hak_realloc(void *p, size_t n) { return hak_realloc_for(p, n, HAK_INLINED); }

/* align: a power of two (the callers check). */
static void *hak_aligned(size_t align, size_t n, const void *caller)
{
	size_t room = hak_guard_room(n);
	bool zero;

	if (align <= 16 && (room > 8 || align <= 8))
		return hak_hot_malloc(n, caller);
	hak_boot_init();
	if (align <= HAK_UNIT && room <= HAK_CLASS_MAX) {
		/* Slabs begin at a unit, so the blocks of every class that is a multiple of the alignment are aligned. */
		for (uint32_t c = hak_class_of(room > align ? room : align); c < HAK_CLASSES; c++)
			if ((hak_class[c].size & (align - 1)) == 0)
				return hak_hot_malloc_for(hak_class[c].size, n, caller, false);
	}
	return hak_guard_open_any(hak_large_alloc_for(room, align, &zero, n, caller), n);
}

HAK_INLINE void *hak_aligned_for(size_t align, size_t n, const void *caller)
{
	if (align == 0 || (align & (align - 1)))
		return hak_refuse(EINVAL);
	return hak_aligned(align, n, caller);
}

HAK_EXPORT void *hak_aligned_alloc(size_t align, size_t n) { return hak_aligned_for(align, n, HAK_CALLER); }

/* There are rules, or sites are captured: then every site has a row, else those of rules. */
static HAK_NOINLINE void *hak_alloc_at_slow(size_t n, uint64_t site, const void *caller)
{
	hak_boot_init();
	uint32_t row = !site || !hak_load(&hak_sites.on) ? 0 : hak_option.sites ? hak_site_meet(site, false) : hak_site_find(site, false);
	bool zero;
	if (site && !row && !hak_option.sites && hak_guard_room(n) > HAK_CLASS_MAX)
		return hak_guard_open_any(hak_large_alloc(hak_guard_room(n), 1, site, 0, &zero), n);
	if (!site || (!row && !hak_option.sites))
		return hak_hot_malloc(n, caller);
	return hak_guard_open_any(hak_site_alloc(hak_guard_room(n), 1, site, &zero, n, row), n);
}

/* For a site of the caller's choice, any number but 0. */
HAK_EXPORT void *hak_alloc_at(size_t n, uint64_t site)
{
	if (hak_unlikely(hak_load(&hak_sites.on) || n >= HAK_CLASS_MAX)) /* BigCache keeps large blocks apart by site */
		return hak_alloc_at_slow(n, site, HAK_CALLER);
	return hak_hot_malloc(n, HAK_INLINED);
}

/* The block knows whose it is: the site is taken so that the two calls look alike. */
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
	uint64_t purged = hak_shard_sum(purged_units);
	int saved = errno;

	hak_boot_init();
	self = hak_own->id ? hak_own : NULL;
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
		else if (h->kept == HAK_KEPT_WAITING)
			hak_heap_break_up_locked(h);
		sum += hak_heap_purge_locked(h);
		hak_unclaim(h);
		hak_batch_reroute(self, stray);
	}
	for (uint32_t i = 0; i < hak_load(&hak_page.shards); i++) {
		hak_shard_t *shard = &hak_page.shard[i];
		hak_lock(&shard->lock);
		for (uint32_t c = 0; c < hak_load_acquire(&hak_class_end); c++)
			for (hak_slab_t *s = shard->orphan[c].head; s; s = s->next)
				sum += hak_slab_purge(s);
		hak_unlock(&shard->lock);
	}
	hak_page_purge(UINT64_MAX, true);
	sum += (size_t)(hak_shard_sum(purged_units) - purged) << HAK_UNIT_SHIFT; /* what left while slabs were released counts too */
	sum += hak_whale_purge(UINT64_MAX);
	hak_lock(&hak_heaps.lock);
	for (hak_heap_t *h = hak_heaps.free; h; h = h->next_free)
		if (hak_load(&h->kept) == HAK_KEPT_NOT) /* one that has come since then may wait, with its stacks */
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
		.policy = hak_policy[policy].name, .did = did, .size = hak_policy_is_of_class(policy) ? hak_class[c].size : 0,
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
		s->remote_frees += hak_heap_remote_frees(h);
		s->batches += hak_load(&h->count.batches_posted) + hak_load(&h->count.batches_claimed)
		            + hak_load(&h->count.batches_rerouted) + hak_load(&h->count.batches_orphaned);
		s->dropped += h->ring ? hak_ring_dropped(h->ring) : 0;
	}
	s->taken = hak_shard_sum(taken_units) << HAK_UNIT_SHIFT;
	s->fresh = hak_shard_sum(fresh_units) << HAK_UNIT_SHIFT;
	s->aged = hak_shard_sum(aged_units) << HAK_UNIT_SHIFT;
	s->over = hak_shard_sum(over_units) << HAK_UNIT_SHIFT;
	hak_lock_uncounted(&hak_whales.lock);
	s->whale_taken = hak_whales.alloc_bytes;
	s->whale_fresh = hak_whales.fresh_bytes;
	s->whale_aged = hak_load(&hak_whales.aged_bytes);
	s->whale_over = hak_load(&hak_whales.over_bytes);
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

/* Makes the thread.  By the library's constructor, and in fork's child. */
static HAK_START void hak_ace_start(void)
{
	int error = hak_option.ace && !hak_ace.refused ? hak_os_thread(hak_ace_thread) : 0;

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
		hak_ace.pool[options[i]] = 0;
		hak_target_publish(options[i], 0, hak_target_home(options[i], 0));
	}
}

static HAK_COLD void hak_ace_set_option(int64_t *place, int64_t value)
{
	hak_lock(&hak_ace.lock);
	hak_store(place, value);
	if (place == &hak_option.retain || place == &hak_option.purge_ms) /* where targets begin */
		hak_ace_forget_locked();
	hak_unlock(&hak_ace.lock);
}

/* ================================================ introspection ABI ============================================ */

/* Records: for each field kind, name, unit, views, help.  Python reads the layouts from hak_about().  Kinds: Q uint64,
 * q int64, I uint32, z const char *.  Views: those of hakmem.report() that show the field; none named: all that show
 * the record.  The word rises among them: it never falls. */
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
	X(Q, stacks, "stacks", "caches", "threads' stacks in use")                                            \
	X(Q, capacity, "blocks", "caches", "blocks that they may hold together now")                          \
	X(Q, capacity_least, "blocks", "caches", "the smallest of them")                                      \
	X(Q, capacity_most, "blocks", "caches", "the largest of them")                                        \
	X(Q, capacity_bytes, "bytes", "caches", "bytes that they may hold together")                          \
	X(Q, mark_most, "blocks", "caches", "highest level that one of them reached in its last period")      \
	X(Q, grows, "changes", "caches rises", "capacities doubled, ever")                                    \
	X(Q, shrinks, "changes", "caches rises", "capacities halved or taken away, ever")                     \
	X(Q, allocs, "blocks", "classes refills caches rises", "blocks handed out, ever")                     \
	X(Q, frees, "blocks", "classes frees rises", "blocks taken back, ever")                               \
	X(Q, misses, "blocks", "refills caches rises", "of the blocks handed out, those from the slow path")  \
	X(Q, filled_blocks, "blocks", "refills rises", "blocks that slow paths put into stacks")              \
	X(Q, stack_frees, "blocks", "frees rises", "blocks freed into the thread's own stack (tls_sll)")      \
	X(Q, slab_frees, "blocks", "frees rises", "blocks freed into a slab past the stacks (ss_local)")      \
	X(Q, remote_frees, "blocks", "frees rises", "blocks put into batches for their owner (ss_remote)")    \
	X(Q, flushed_blocks, "blocks", "frees rises", "blocks that slow paths took out of stacks")            \
	X(Q, live_blocks, "blocks", "classes", "blocks that callers hold")                                    \
	X(Q, cached_blocks, "blocks", "classes caches", "blocks in stacks")                                   \
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
	X(Q, allocs, "blocks", "summary rises", "blocks handed out, ever")                               \
	X(Q, frees, "blocks", "summary rises", "blocks taken back, ever")                                \
	X(Q, misses, "blocks", "refills rises", "of the blocks handed out, those from the slow path")    \
	X(Q, live_blocks, "blocks", "summary", "blocks that callers hold")                               \
	X(Q, live_bytes, "bytes", "summary pools", "their bytes, rounded up to their class")             \
	X(Q, cached_bytes, "bytes", "summary pools", "blocks in stacks")                                 \
	X(Q, transit_bytes, "bytes", "pools", "blocks in outgoing batches and inboxes")                  \
	X(Q, peak_used_bytes, "bytes", "pools", "most bytes of live, cached and transit blocks at once") \
	X(Q, alloc_bytes, "bytes", "pools rises", "bytes of blocks handed out, ever")                    \
	X(Q, freed_bytes, "bytes", "pools rises", "bytes of blocks taken back, ever")

#define HAK_HEAP_FIELDS(X)                                                                         \
	X(I, heap, "", "", "number of the heap")                                                       \
	X(I, thread, "", "", "its thread's id for the system; 0: it is shared by threads without one") \
	X(Q, allocs, "blocks", "threads rises", "blocks handed out, ever, also to threads before this one") \
	X(Q, misses, "blocks", "threads rises", "of these, those from the slow path")                  \
	X(Q, used_bytes, "bytes", "", "blocks out of its slabs: live, cached and in transit")          \
	X(Q, cached_bytes, "bytes", "", "blocks in its stacks")                                        \
	X(Q, inbox_bytes, "bytes", "", "blocks that other threads have sent back to it")               \
	X(Q, slabs, "slabs", "", "slabs that it owns")                                                 \
	X(Q, slab_bytes, "bytes", "", "size of these")                                                 \
	X(Q, remote_frees, "blocks", "threads rises", "blocks of other heaps that it has freed")       \
	X(Q, refills, "refills", "threads rises", "stacks found empty and filled in one go")           \
	X(Q, flushes, "flushes", "threads rises", "stacks found full and emptied by half")             \
	X(Q, claims, "acquisitions", "threads rises", "acquisitions of its claim")

#define HAK_LOCK_FIELDS(X)                                                  \
	X(z, name, "", "", "the lock")                                          \
	X(Q, taken, "acquisitions", "locks rises", "acquisitions")              \
	X(Q, contended, "acquisitions", "locks rises", "of these, those that had to wait") \
	X(z, guards, "", "", "what it guards")

#define HAK_SHARD_FIELDS(X)                                                                          \
	X(I, shard, "", "", "number of the shard")                                                       \
	X(Q, superslabs, "superslabs", "", "superslabs that belong to it")                               \
	X(Q, used_bytes, "bytes", "", "units in slabs, large blocks and BigCache, and free ones at hand of heaps")                       \
	X(Q, dirty_bytes, "bytes", "", "free units whose memory has been used and not given back")       \
	X(Q, clean_bytes, "bytes", "", "free units without memory behind them")                          \
	X(Q, free_runs, "runs", "", "runs of free units")                                                \
	X(Q, orphan_slabs, "slabs", "", "slabs of dead threads that nobody has taken over")              \
	X(Q, large_blocks, "blocks", "", "large blocks in it: those of callers, and those in BigCache")  \
	X(Q, taken, "acquisitions", "shards rises", "acquisitions of its lock")                          \
	X(Q, contended, "acquisitions", "shards rises", "of these, those that had to wait")              \
	X(Q, moved_in, "superslabs", "shards rises", "superslabs that it took from other shards, ever")  \
	X(Q, lent, "runs", "shards rises", "runs that threads of other shards took from it, where they lie, ever")

#define HAK_SEGMENT_FIELDS(X)                                                                                 \
	X(Q, address, "address", "", "where it begins")                                                           \
	X(Q, total_size, "bytes", "", "its size")                                                                 \
	X(z, state, "", "", "slab, orphan (without a thread), run (large block), whale, kept whale (either, freed), free, at hand (of a heap)") \
	X(z, tier, "", "", "tier of its blocks; free: none")                                                      \
	X(Q, block_size, "bytes", "", "size of a block; 0: free, at hand")                                         \
	X(Q, blocks, "blocks", "", "blocks that it has room for")                                                 \
	X(Q, used_blocks, "blocks", "", "of these, those out of it: live, cached and in transit")                 \
	X(I, heap, "", "", "the heap that owns it; 0: none")                                                      \
	X(Q, dirty_bytes, "bytes", "", "free, at hand: bytes with memory behind them; others: total_size")        \
	X(Q, used_page_bytes, "bytes", "", "slab: its OS pages that hold a used block, or a part of one")         \
	X(Q, free_page_bytes, "bytes", "", "slab: its OS pages that held blocks, and hold none now: trim gives them back")

#define HAK_MAPPING_FIELDS(X)                                                                       \
	X(Q, address, "address", "", "where it begins")                                                 \
	X(Q, total_size, "bytes", "", "its size")                                                       \
	X(z, holds, "", "", "blocks (a range of superslabs), metadata, library (its code and its own variables)")

#define HAK_BIG_FIELDS(X)                                                                              \
	X(I, site, "", "", "the call site, in 32 bits; 0: none was given")                                 \
	X(I, class, "", "", "size class: units of 64 KiB, and above 64 MiB eight classes to a doubling")   \
	X(Q, size, "bytes", "", "the shortest block of that class")                                        \
	X(Q, entries, "blocks", "", "freed blocks that it has kept")                                       \
	X(Q, bytes, "bytes", "", "their bytes")                                                            \
	X(Q, hits, "blocks", "bigcache rises", "its blocks handed out again")                              \
	X(Q, misses, "blocks", "bigcache rises", "requests for its size that BigCache had no block for")

#define HAK_OWNER_FIELDS(X)                                     \
	X(Q, base, "address", "", "start of the block")             \
	X(Q, size, "bytes", "", "its usable size")                  \
	X(I, class, "", "", "its class; 4294967295: none")          \
	X(I, heap, "", "", "the heap that owns it; 0: no thread's") \
	X(z, tier, "", "", "its tier")                              \
	X(z, state, "", "", "live (or in another thread's stack), cached in this thread's, or free")

#define HAK_SITE_FIELDS(X)                                                                                         \
	X(Q, site, "", "", "the number that its caller gives, or the address that malloc returns to")                  \
	X(z, place, "", "", "code: its module and offset, as rules have it; others: all for which there is no row")    \
	X(z, function, "", "", "code: the function, if its module exports it")                                         \
	X(Q, allocs, "blocks", "sites rises", "blocks handed out, by realloc too, ever; without capture: since it has a rule") \
	X(Q, bytes, "bytes", "sites rises", "bytes that were asked for in these")                                      \
	X(Q, live_blocks, "blocks", "", "of these, those that are not freed yet; 0 without capture")                   \
	X(Q, live_bytes, "bytes", "", "bytes that were asked for in those")                                            \
	X(z, lifetime, "", "", "by a rule: the lifetime group of its blocks, short or long")                           \
	X(q, retain, "ms", "", "by a rule: how long freed blocks above 1 MiB are kept; -1: as all others")             \
	X(q, shard, "", "", "by a rule: the shard of the page heap; -1: as all others")                                \
	X(I, cached, "", "", "0: by a rule threads do not cache its blocks")

#define HAK_RULE_FIELDS(X)                                                                              \
	X(z, where, "", "", "the site, as the rule has it: a number, a module and an offset, or a symbol")  \
	X(z, lifetime, "", "", "lifetime group, short or long")                                             \
	X(q, retain, "ms", "", "how long freed blocks above 1 MiB are kept; -1: as all others")             \
	X(q, shard, "", "", "shard of the page heap; -1: as all others")                                    \
	X(I, cached, "", "", "0: threads do not cache its blocks")

#define HAK_OPTION_FIELDS(X)                                                               \
	X(z, name, "", "", "name, as set() takes it")                                          \
	X(z, env, "", "", "environment variable that sets it")                                 \
	X(z, type, "", "", "bool, int, bytes, text or mode (one of the words that stand for its unit)") \
	X(z, unit, "", "", "unit")                                                             \
	X(z, when, "", "", "start: only in the environment; any: also while the program runs") \
	X(z, help, "", "", "what it does")                                                     \
	X(z, use, "", "", "when a user would want it")                                         \
	X(q, initial, "", "", "default")                                                       \
	X(q, least, "", "", "smallest value")                                                  \
	X(q, most, "", "", "largest value")

#define HAK_SETTING_FIELDS(X)                                                                  \
	X(z, name, "", "", "the option")                                                           \
	X(q, value, "", "", "its value; of a text its length")                                     \
	X(z, text, "", "", "that text")

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
typedef struct hak_shard_row { HAK_SHARD_FIELDS(HAK_DECLARE_FIELD) } hak_shard_row_t;
typedef struct hak_segment { HAK_SEGMENT_FIELDS(HAK_DECLARE_FIELD) } hak_segment_t;
typedef struct hak_mapping { HAK_MAPPING_FIELDS(HAK_DECLARE_FIELD) } hak_mapping_t;
typedef struct hak_big_row { HAK_BIG_FIELDS(HAK_DECLARE_FIELD) } hak_big_row_t;
typedef struct hak_owner { HAK_OWNER_FIELDS(HAK_DECLARE_FIELD) } hak_owner_t;
typedef struct hak_site_row { HAK_SITE_FIELDS(HAK_DECLARE_FIELD) } hak_site_row_t;
typedef struct hak_rule_row { HAK_RULE_FIELDS(HAK_DECLARE_FIELD) } hak_rule_row_t;
typedef struct hak_policy_row { HAK_POLICY_FIELDS(HAK_DECLARE_FIELD) } hak_policy_row_t;
typedef struct hak_setting { HAK_SETTING_FIELDS(HAK_DECLARE_FIELD) } hak_setting_t;
typedef struct hak_stats { HAK_GLOBAL_STATS(HAK_DECLARE_COUNTER) HAK_HEAP_COUNTERS(HAK_DECLARE_COUNTER) } hak_stats_t;

typedef struct hak_field { uint32_t offset, size; } hak_field_t;
typedef struct hak_record {
	const char *name, *kinds;  /* kinds: a letter for each field */
	const char *texts;         /* HAK_FIELD_TEXTS for each field, one behind the other: name, unit, views, help */
	const hak_field_t *fields;
	uint32_t count, size;      /* fields; bytes of a row */
	uint32_t texts_len, reserved;
} hak_record_t;
typedef struct hak_about {
	uint32_t abi, size;
	const char *version, *variant;
	const hak_record_t *records;
	uint32_t count, reserved;
} hak_about_t;

#define HAK_FIELD(type, name) {offsetof(type, name), sizeof(((type *)0)->name)},
#define HAK_FIELD_KIND(kind, name, unit, view, help) #kind
#define HAK_FIELD_TEXTS(kind, name, unit, view, help) #name "\0" unit "\0" view "\0" help "\0"
enum { HAK_TEXTS = 4 }; /* of a field */
#define HAK_CLASS_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_class_row_t, name)
#define HAK_TIER_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_tier_row_t, name)
#define HAK_HEAP_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_heap_row_t, name)
#define HAK_LOCK_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_lock_row_t, name)
#define HAK_SHARD_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_shard_row_t, name)
#define HAK_SEGMENT_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_segment_t, name)
#define HAK_MAPPING_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_mapping_t, name)
#define HAK_BIG_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_big_row_t, name)
#define HAK_OWNER_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_owner_t, name)
#define HAK_OPTION_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_option_row_t, name)
#define HAK_SITE_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_site_row_t, name)
#define HAK_RULE_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_rule_row_t, name)
#define HAK_POLICY_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_policy_row_t, name)
#define HAK_DECISION_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_decision_t, name)
#define HAK_SETTING_FIELD(kind, name, unit, view, help) HAK_FIELD(hak_setting_t, name)
#define HAK_STAT_FIELD(name, unit, view, help) HAK_FIELD(hak_stats_t, name)
static const hak_field_t hak_class_fields[] = {HAK_CLASS_FIELDS(HAK_CLASS_FIELD)};
static const hak_field_t hak_tier_fields[] = {HAK_TIER_FIELDS(HAK_TIER_FIELD)};
static const hak_field_t hak_heap_fields[] = {HAK_HEAP_FIELDS(HAK_HEAP_FIELD)};
static const hak_field_t hak_lock_fields[] = {HAK_LOCK_FIELDS(HAK_LOCK_FIELD)};
static const hak_field_t hak_shard_fields[] = {HAK_SHARD_FIELDS(HAK_SHARD_FIELD)};
static const hak_field_t hak_segment_fields[] = {HAK_SEGMENT_FIELDS(HAK_SEGMENT_FIELD)};
static const hak_field_t hak_mapping_fields[] = {HAK_MAPPING_FIELDS(HAK_MAPPING_FIELD)};
static const hak_field_t hak_big_fields[] = {HAK_BIG_FIELDS(HAK_BIG_FIELD)};
static const hak_field_t hak_owner_fields[] = {HAK_OWNER_FIELDS(HAK_OWNER_FIELD)};
static const hak_field_t hak_option_fields[] = {HAK_OPTION_FIELDS(HAK_OPTION_FIELD)};
static const hak_field_t hak_site_fields[] = {HAK_SITE_FIELDS(HAK_SITE_FIELD)};
static const hak_field_t hak_rule_fields[] = {HAK_RULE_FIELDS(HAK_RULE_FIELD)};
static const hak_field_t hak_policy_fields[] = {HAK_POLICY_FIELDS(HAK_POLICY_FIELD)};
static const hak_field_t hak_decision_fields[] = {HAK_DECISION_FIELDS(HAK_DECISION_FIELD)};
static const hak_field_t hak_setting_fields[] = {HAK_SETTING_FIELDS(HAK_SETTING_FIELD)};
enum { HAK_STAT_COUNT = sizeof(hak_stats_t) / sizeof(uint64_t) };
static const hak_field_t hak_stat_fields[] = {HAK_GLOBAL_STATS(HAK_STAT_FIELD) HAK_HEAP_COUNTERS(HAK_STAT_FIELD)};
#define HAK_STAT_KIND(name, unit, view, help) "Q"
#define HAK_STAT_TEXTS(name, unit, view, help) HAK_FIELD_TEXTS(Q, name, unit, view, help)
static const char hak_stat_texts[] = HAK_GLOBAL_STATS(HAK_STAT_TEXTS) HAK_HEAP_COUNTERS(HAK_STAT_TEXTS);
#define HAK_RECORD(name, kinds, texts, fields, type) \
	{name, kinds, texts, fields, sizeof fields / sizeof *fields, sizeof(type), sizeof(texts) - 1, 0}
#define HAK_RECORD_OF(name, X, fields, type) HAK_RECORD(name, X(HAK_FIELD_KIND), X(HAK_FIELD_TEXTS), fields, type)
static const hak_record_t hak_records[] = {
	HAK_RECORD("stats", HAK_GLOBAL_STATS(HAK_STAT_KIND) HAK_HEAP_COUNTERS(HAK_STAT_KIND), hak_stat_texts, hak_stat_fields, hak_stats_t),
	HAK_RECORD_OF("class", HAK_CLASS_FIELDS, hak_class_fields, hak_class_row_t),
	HAK_RECORD_OF("tier", HAK_TIER_FIELDS, hak_tier_fields, hak_tier_row_t),
	HAK_RECORD_OF("heap", HAK_HEAP_FIELDS, hak_heap_fields, hak_heap_row_t),
	HAK_RECORD_OF("lock", HAK_LOCK_FIELDS, hak_lock_fields, hak_lock_row_t),
	HAK_RECORD_OF("segment", HAK_SEGMENT_FIELDS, hak_segment_fields, hak_segment_t),
	HAK_RECORD_OF("mapping", HAK_MAPPING_FIELDS, hak_mapping_fields, hak_mapping_t),
	HAK_RECORD_OF("option", HAK_OPTION_FIELDS, hak_option_fields, hak_option_row_t),
	HAK_RECORD_OF("owner", HAK_OWNER_FIELDS, hak_owner_fields, hak_owner_t),
	HAK_RECORD_OF("shard", HAK_SHARD_FIELDS, hak_shard_fields, hak_shard_row_t),
	HAK_RECORD_OF("big", HAK_BIG_FIELDS, hak_big_fields, hak_big_row_t),
	HAK_RECORD_OF("site", HAK_SITE_FIELDS, hak_site_fields, hak_site_row_t),
	HAK_RECORD_OF("rule", HAK_RULE_FIELDS, hak_rule_fields, hak_rule_row_t),
	HAK_RECORD_OF("policy", HAK_POLICY_FIELDS, hak_policy_fields, hak_policy_row_t),
	HAK_RECORD_OF("decision", HAK_DECISION_FIELDS, hak_decision_fields, hak_decision_t),
	HAK_RECORD_OF("setting", HAK_SETTING_FIELDS, hak_setting_fields, hak_setting_t),
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

/* The lock behind l in the same row; NULL: that was the last.  Only the page heap has more than one. */
static hak_lock_t *hak_shared_lock_next(const hak_lock_t *l)
{
	uintptr_t shard = (uintptr_t)l - (uintptr_t)&hak_page.shard[0].lock, share = (uintptr_t)l - (uintptr_t)&hak_track[0].lock;
	if (shard < sizeof(hak_shard_t) * HAK_SHARDS_MAX) {
		size_t next = shard / sizeof(hak_shard_t) + 1;
		return next < hak_load(&hak_page.shards) ? &hak_page.shard[next].lock : NULL;
	}
	if (l == &hak_sites.lock && hak_option.sites)
		return &hak_track[0].lock;
	if (share < sizeof(hak_track[0]) * HAK_TRACK_SHARES) {
		size_t next = share / sizeof(hak_track[0]) + 1;
		return next < HAK_TRACK_SHARES ? &hak_track[next].lock : NULL;
	}
	return NULL;
}

HAK_EXPORT const char *hak_error_name(int code)
{
	return code >= 0 && code < HAK_ERR_COUNT ? hak_text_at(hak_errors, 2 * (size_t)code) : "UNKNOWN";
}

HAK_EXPORT const char *hak_error_text(int code)
{
	return code >= 0 && code < HAK_ERR_COUNT ? hak_error_says(code) : "unknown error";
}

/* Sums over all heaps and the orphans, one row for each class, and the counters of heaps into *sum.  What is received
 * is read before what is sent, so that a block in transit is never counted as less than none; live blocks are the
 * rest.  Exact when no thread allocates; while some do, blocks that moved between the first heap's reading and the last
 * are off: that must not take long, so that a thread which holds a claim and does not run is only waited for by the
 * `patient`.  False: there was one.  *units: those that heaps have at hand. */
static HAK_COLD bool hak_stats_collect(hak_class_row_t row[HAK_CLASSES], hak_heap_counters_t *sum, uint64_t *units,
                                       bool patient)
{
	uint32_t end, shards;
	uint64_t received[HAK_CLASSES] = {0};

	*units = 0;
	hak_boot_init();
	end = HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made);
	memset(sum, 0, sizeof *sum);
	shards = hak_page_lock_all();
	for (uint32_t i = 0; i < shards; i++)
		hak_gauge_tell_orphans_locked(&hak_page.shard[i]);
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		const hak_class_t *k = &hak_class[c];
		row[c] = (hak_class_row_t){.index = c, .tier = hak_tier[k->tier].name, .size = k->size,
			.slab_bytes = (uint64_t)hak_slab_units(k) << HAK_UNIT_SHIFT, .blocks_per_slab = k->blocks,
			.max_cached = k->cached && hak_option.enable_tls ? k->most : 0};
	}
	for (uint32_t i = 0; i < shards * hak_load_acquire(&hak_class_end); i++) { /* groups count in the class that they are of */
		const hak_shard_t *shard = &hak_page.shard[i % shards];
		uint32_t g = i / shards, c = hak_class[g].base;
		row[c].used_blocks += shard->orphan_used[g];
		row[c].slabs += shard->orphans[g];
		row[c].orphan_slabs += shard->orphans[g];
		received[c] += shard->orphan_received[g];
		row[c].slab_frees += shard->orphan_claimed[g];
	}
	hak_page_unlock_all(shards);
	for (uint32_t id = HAK_OWNER_SHARED; id < end; id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		if (!h)
			continue;
		if (!hak_lock_try_uncounted(&h->claim)) {
			if (!patient)
				return false;
			hak_lock_uncounted(&h->claim);
		}
		*units += h->units; /* its slow paths stand still; its fast path goes on */
		for (int t = 0; t < HAK_TIER_whale; t++)
			hak_gauge_tell_locked(h, t);
		for (uint32_t i = 0; i < hak_load_acquire(&hak_class_end); i++) {
			const hak_bin_t *b = &h->bin[i];
			uint64_t v = hak_load(&h->v[i]), allocs = (v >> 16) + b->folded;
			uint64_t level = (v & 0xFFFF) - h->floor[i];
			uint32_t c = hak_class[i].base;
			row[c].allocs += allocs;
			row[c].misses += b->misses;
			row[c].cached_blocks += level;
			row[c].used_blocks += b->used;
			row[c].slabs += b->slabs;
			row[c].orphan_slabs += h->kept == HAK_KEPT_WAITING ? b->slabs : 0;
			row[c].filled_blocks += b->filled;
			row[c].flushed_blocks += b->flushed;
			received[c] += b->received;
			uint64_t capacity = hak_heap_capacity(h, i);
			if (capacity) {
				row[c].capacity_least = row[c].stacks && row[c].capacity_least < capacity ? row[c].capacity_least : capacity;
				row[c].capacity_most = hak_max32((uint32_t)row[c].capacity_most, (uint32_t)capacity);
				row[c].mark_most = hak_max32((uint32_t)row[c].mark_most, b->mark);
				row[c].capacity += capacity;
				row[c].capacity_bytes += capacity * hak_class[c].size;
				row[c].stacks++;
			}
			row[c].grows += b->grows;
			row[c].shrinks += b->shrinks;
			/* What went into the stack came from slow paths or from frees; what went out, to callers or to slow paths. */
			row[c].stack_frees += level + (allocs - b->misses) + b->flushed - b->filled;
			row[c].slab_frees += hak_load(&b->direct) + b->claimed;
		}
		hak_unclaim(h);
	}
	for (uint32_t id = HAK_OWNER_SHARED; id < end; id++) {
		hak_heap_t *h = hak_heap_by_id(id);
		for (uint32_t i = 0; h && i < hak_load_acquire(&hak_class_end); i++) {
			uint64_t sent = hak_load(&h->bin[i].sent);
			uint32_t c = hak_class[i].base;
			sum->remote_frees += sent; /* the counter has those that went into no batch: see hak_heap_remote_frees */
			row[c].remote_frees += sent;
			row[c].transit_blocks += sent + hak_load(&h->bin[i].strayed);
		}
#define HAK_SUM_COUNTER(name, unit, view, help) sum->name += h ? hak_load(&h->count.name) : 0;
		HAK_HEAP_COUNTERS(HAK_SUM_COUNTER)
	}
#define HAK_ADD_ALONE(name, unit, view, help) sum->name += hak_load(&hak_alone.name);
	HAK_HEAP_COUNTERS(HAK_ADD_ALONE)
	for (uint32_t c = 0; c < HAK_CLASSES; c++) {
		row[c].transit_blocks -= received[c];
		row[c].frees = row[c].stack_frees + row[c].slab_frees + row[c].remote_frees;
		uint64_t out = row[c].cached_blocks + row[c].transit_blocks;
		row[c].live_blocks = row[c].used_blocks > out ? row[c].used_blocks - out : 0;
		row[c].free_blocks = row[c].slabs * hak_class[c].blocks - row[c].used_blocks;
	}
	return true;
}

/* How statistics are read: once, if nothing has to be waited for; in what time it takes; or at the best of a few times,
 * between which this thread may sleep, as its caller has asked for them. */
typedef enum { HAK_STATS_ONCE, HAK_STATS_PATIENT, HAK_STATS_WELL } hak_stats_how_t;

/* The same, with the time that it took in us.  False: it would have taken long. */
static HAK_COLD bool hak_stats_collect_so(hak_class_row_t row[HAK_CLASSES], hak_heap_counters_t *sum, uint64_t *units,
                                          hak_stats_how_t how, uint64_t *took)
{
	const struct timespec pause = {.tv_nsec = 500000};
	int saved = errno, tries = how == HAK_STATS_WELL ? HAK_STATS_TRIES : how == HAK_STATS_ONCE;

	for (bool patient = tries == 0;; patient = --tries == 0) {
		uint64_t begin = hak_os_ns(CLOCK_MONOTONIC);
		bool done = hak_stats_collect(row, sum, units, patient);
		*took = (hak_os_ns(CLOCK_MONOTONIC) - begin) / 1000;
		if (patient || (done && *took <= HAK_STATS_US))
			return true;
		if (how == HAK_STATS_ONCE)
			return false;
		nanosleep(&pause, NULL);
		errno = saved;
	}
}

/* A row for each shared lock, the shared heap's claim among them, and one for all the other claims. */
enum { HAK_LOCK_ROWS = HAK_LOCK_COUNT + 2 };
static HAK_COLD void hak_lock_rows(hak_lock_row_t row[HAK_LOCK_ROWS])
{
	hak_lock_row_t *claims = &row[HAK_LOCK_ROWS - 1];

	for (int i = 0; i < HAK_LOCK_COUNT; i++) {
		row[i] = (hak_lock_row_t){.name = hak_shared_locks[i].name, .guards = hak_shared_locks[i].guards};
		for (const hak_lock_t *l = hak_shared_locks[i].lock; l; l = hak_shared_lock_next(l)) {
			row[i].taken += hak_load(&l->taken);
			row[i].contended += hak_load(&l->contended);
		}
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
		if (h == hak_own) /* it may be in a child that fork's handlers know nothing of */
			hak_store(&h->thread, (uint32_t)syscall(SYS_gettid));
		*r = (hak_heap_row_t){.heap = id, .thread = hak_load(&h->thread), .used_bytes = hak_heap_used_locked(h),
			.inbox_bytes = hak_load(&h->inbox_bytes), .remote_frees = hak_heap_remote_frees(h),
			.refills = h->count.refills, .flushes = h->count.flushes, .claims = h->claim.taken};
		for (uint32_t c = 0; c < hak_load_acquire(&hak_class_end); c++) {
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
		uint64_t size = (uint64_t)s->len << HAK_UNIT_SHIFT, unused = 0;
		size_t from, to;
		for (uint32_t i = 0; t->n < t->most && s->free && hak_slab_free_pages(s, &i, &from, &to);)
			unused += to - from;
		hak_segment_add(t, (hak_segment_t){.address = (uint64_t)(uintptr_t)s->base, .total_size = size,
			.state = heap ? "slab" : "orphan", .tier = hak_tier[k->tier].name, .block_size = k->size, .blocks = k->blocks,
			.used_blocks = s->used, .heap = heap, .dirty_bytes = size,
			.used_page_bytes = hak_round_up((size_t)s->carved * k->size, hak_boot.os_page) - unused,
			.free_page_bytes = s->purged || hak_page_is_forbidden() ? 0 : unused});
	}
}

static HAK_COLD void hak_segment_add_heap(hak_segments_t *t, hak_heap_t *h)
{
	uint32_t id;
	hak_lock_uncounted(&h->claim);
	id = h->kept == HAK_KEPT_WAITING ? 0 : h->id;
	for (uint32_t c = 0; c < hak_load_acquire(&hak_class_end); c++) {
		const hak_bin_t *b = &h->bin[c];
		if (b->current) {
			hak_slab_t alone = *b->current; /* it stands in no list: its link is stale */
			alone.next = NULL;
			hak_segment_add_slabs(t, &alone, id);
		}
		hak_segment_add_slabs(t, b->partial.head, id);
		hak_segment_add_slabs(t, b->full.head, id);
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
		len = word == HAK_RUN_AT_HAND ? 1 : s->len; /* a heap may be making a slab of it */
		hak_segment_t row = {.address = (uint64_t)(uintptr_t)s->base, .total_size = (uint64_t)len << HAK_UNIT_SHIFT,
			.state = word == HAK_RUN_AT_HAND ? "at hand" : "free", .tier = "",
			.dirty_bytes = (uint64_t)hak_dirty_count(u, len) << HAK_UNIT_SHIFT};
		if (word == HAK_RUN_HEAD || word == HAK_RUN_KEPT) {
			/* Without a key it is in the hands of a thread that frees it, and counts as live until it is kept.  In a
			 * child of fork that thread may be gone. */
			hak_lock_uncounted(&hak_bigcache.lock);
			bool kept = hak_load(&hak_unit[u]) == HAK_RUN_KEPT && s->big.key;
			hak_unlock(&hak_bigcache.lock);
			row.state = kept ? "kept whale" : "run";
			row.tier = hak_tier[HAK_TIER_whale].name;
			row.block_size = row.total_size;
			row.blocks = 1;
			row.used_blocks = !kept;
		}
		hak_segment_add(t, row);
	}
}

static HAK_COLD void hak_segment_add_whale(hak_segments_t *t, const hak_whale_t *w, bool kept)
{
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
	uint32_t shards = hak_page_lock_all(), end = hak_load_acquire(&hak_class_end);
	for (uint32_t i = 0; i < shards * end; i++) {
		hak_segment_add_slabs(&t, hak_page.shard[i / end].orphan[i % end].head, 0);
		hak_segment_add_slabs(&t, hak_page.shard[i / end].orphan_full[i % end].head, 0);
	}
	for (uint32_t i = 0; i < hak_page.ranges; i++)
		hak_segment_add_runs_locked(&t, &hak_page.range[i]);
	hak_page_unlock_all(shards);
	hak_unlock(&hak_page.purging);
	hak_lock_uncounted(&hak_whales.lock);
	for (uint32_t i = 0; i < HAK_WHALE_BUCKETS; i++)
		for (const hak_whale_t *w = hak_whales.bucket[i]; w; w = w->next)
			hak_segment_add_whale(&t, w, false);
	hak_unlock(&hak_whales.lock);
	hak_lock_uncounted(&hak_bigcache.lock);
	for (hak_big_t *b = hak_bigcache.oldest[HAK_BIG_WHALE]; b; b = b->newer)
		hak_segment_add_whale(&t, hak_big_whale(b), true);
	hak_unlock(&hak_bigcache.lock);
	return t.n;
}

typedef struct hak_mappings { /* a table being filled */
	hak_mapping_t *row;
	int most, n;
} hak_mappings_t;

static HAK_COLD void hak_mapping_add(hak_mappings_t *t, const void *p, size_t len, const char *holds)
{
	hak_mapping_t row = {.address = (uint64_t)(uintptr_t)p, .total_size = len, .holds = holds};
	hak_mapping_t *last = t->n && t->n <= t->most ? &t->row[t->n - 1] : NULL;

	if (last && last->holds == holds && row.address + len == last->address) { /* the system maps from high to low */
		last->address = row.address;
		last->total_size += len;
	} else if (p && t->n++ < t->most) {
		t->row[t->n - 1] = row;
	}
}

/* Where hakmem's memory is: ranges whole, as they are reserved, the library, and what is mapped for metadata, neighbours
 * as one.  Whales are not among it.  Returns how many rows there are, which may be more than fit. */
HAK_EXPORT HAK_COLD int hak_mapping_table(hak_mapping_t *rows, size_t row_size, int most)
{
	extern const char __ehdr_start __attribute__((visibility("hidden"))), _end __attribute__((visibility("hidden")));
	static const char holds[] = "metadata";
	hak_mappings_t t = {rows, most, 0};

	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_boot_init();
	hak_lock_uncounted(&hak_page.reserving);
	for (uint32_t i = 0; i < hak_page.ranges; i++)
		hak_mapping_add(&t, hak_page.range[i].base, (size_t)hak_page.range[i].units << HAK_UNIT_SHIFT, "blocks");
	hak_unlock(&hak_page.reserving);
	hak_mapping_add(&t, &__ehdr_start, (size_t)((uintptr_t)&_end - (uintptr_t)&__ehdr_start), "library");
	hak_lock_uncounted(&hak_bigcache.lock);
	if (hak_bigcache.bucket != hak_bigcache.first)
		hak_mapping_add(&t, hak_bigcache.bucket, hak_round_up(hak_bigcache.buckets * sizeof(hak_big_key_t *), hak_boot.os_page), holds);
	hak_unlock(&hak_bigcache.lock);
	hak_lock_uncounted(&hak_meta.lock);
	for (const hak_chunk_t *c = hak_meta.chunk; c; c = c->next)
		hak_mapping_add(&t, c, c->len, holds);
	hak_unlock(&hak_meta.lock);
	hak_lock_uncounted(&hak_sites.lock);
	hak_mapping_add(&t, hak_sites.row, HAK_SITE_TABLE_BYTES, holds);
	hak_mapping_add(&t, hak_sites.rule, HAK_SITE_RULES * sizeof(hak_rule_t), holds);
	hak_unlock(&hak_sites.lock);
	for (struct hak_track_share *s = hak_track; s < hak_track + HAK_TRACK_SHARES; s++) {
		hak_lock_uncounted(&s->lock);
		hak_mapping_add(&t, s->place, s->places * sizeof *s->place, holds);
		hak_unlock(&s->lock);
	}
	return t.n;
}

/* The keys of BigCache, in no order.  Returns how many there are, which may be more than fit. */
HAK_EXPORT HAK_COLD int hak_big_table(hak_big_row_t *rows, size_t row_size, int most)
{
	int n = 0;

	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_boot_init();
	hak_lock_uncounted(&hak_bigcache.lock);
	for (uint32_t i = 0; i < hak_bigcache.buckets; i++)
		for (const hak_big_key_t *k = hak_bigcache.bucket[i]; k; k = k->next)
			if (n++ < most)
				rows[n - 1] = (hak_big_row_t){.site = k->site, .class = k->class, .size = hak_big_class_size(k->class),
					.entries = k->entries, .bytes = k->bytes, .hits = k->hits, .misses = k->misses};
	hak_unlock(&hak_bigcache.lock);
	return n;
}

/* The peaks of statistics begin anew, at what is in use now. */
HAK_EXPORT HAK_COLD void hak_reset_peaks(void)
{
	hak_class_row_t row[HAK_CLASSES];
	hak_heap_counters_t counters;
	uint64_t units;

	hak_stats_collect(row, &counters, &units, true); /* the heaps tell the gauges */
	for (int t = 0; t < HAK_TIER_COUNT; t++)
		hak_store(&hak_gauge.peak[t], hak_load(&hak_gauge.used[t]));
	hak_store(&hak_gauge.peak_all, hak_gauge_sum());
	hak_store(&hak_cache.peak, hak_load(&hak_cache.bytes));
	hak_store(&hak_page.peak_shown, 0u);
	hak_page_peak();
}

/* The shards in use, in order of number.  Returns how many there are. */
HAK_EXPORT HAK_COLD int hak_shard_table(hak_shard_row_t *rows, size_t row_size, int most)
{
	uint32_t shards;

	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_boot_init();
	shards = hak_page_lock_all();
	for (uint32_t i = 0; i < shards && (int)i < most; i++) {
		const hak_shard_t *shard = &hak_page.shard[i];
		const hak_shard_counts_t *n = &shard->count;
		rows[i] = (hak_shard_row_t){.shard = i, .superslabs = n->supers, .used_bytes = n->used_units << HAK_UNIT_SHIFT,
			.dirty_bytes = (n->dirty_units + n->purging_dirty) << HAK_UNIT_SHIFT,
			.clean_bytes = (n->clean_units + n->purging_clean) << HAK_UNIT_SHIFT, .free_runs = n->runs,
			.large_blocks = n->large_blocks, .taken = hak_load(&shard->lock.taken),
			.contended = hak_load(&shard->lock.contended), .moved_in = n->moved, .lent = n->lent};
		for (uint32_t c = 0; c < hak_load_acquire(&hak_class_end); c++)
			rows[i].orphan_slabs += shard->orphans[c];
	}
	hak_page_unlock_all(shards);
	return (int)shards;
}

HAK_EXPORT HAK_COLD int hak_class_table(hak_class_row_t *rows, size_t row_size, int most)
{
	hak_class_row_t row[HAK_CLASSES];
	hak_heap_counters_t counters;
	uint64_t units, took;

	if (most > 0) {
		if (row_size != sizeof *rows)
			return -HAK_ERR_SIZE;
		hak_stats_collect_so(row, &counters, &units, HAK_STATS_WELL, &took);
		memcpy(rows, row, (size_t)hak_min32((uint32_t)most, HAK_CLASSES) * sizeof *rows);
	}
	return HAK_CLASSES;
}

/* Runs and BigCache, which the shards' counts include.  The locks of all shards. */
static HAK_COLD void hak_stats_large_locked(hak_stats_t *s)
{
	hak_lock_uncounted(&hak_bigcache.lock);
	uint64_t units = hak_big_units();
	s->large_blocks = hak_shard_sum(large_blocks) - hak_bigcache.entries[HAK_BIG_RUN];
	s->large_bytes = (hak_shard_sum(large_units) - units) << HAK_UNIT_SHIFT;
	s->in_use_bytes = ((hak_shard_sum(used_units) - units) << HAK_UNIT_SHIFT) + s->whale_bytes;
	s->allocs += hak_shard_sum(large_allocs) + hak_bigcache.run_allocs;
	s->frees += hak_shard_sum(large_frees) + hak_bigcache.run_frees;
	s->alloc_bytes += (hak_shard_sum(large_units_alloced) << HAK_UNIT_SHIFT) + hak_bigcache.run_alloc_bytes;
	s->freed_bytes += (hak_shard_sum(large_units_freed) << HAK_UNIT_SHIFT) + hak_bigcache.run_freed_bytes;
	s->kept_whale_bytes = hak_bigcache.bytes[HAK_BIG_RUN] + hak_bigcache.bytes[HAK_BIG_WHALE];
	s->big_hits = hak_bigcache.hits;
	s->big_misses = hak_bigcache.misses;
	s->big_entries = hak_bigcache.entries[HAK_BIG_RUN] + hak_bigcache.entries[HAK_BIG_WHALE];
	s->big_evicted_age = hak_bigcache.aged;
	s->big_evicted_budget = hak_bigcache.over;
	s->big_evicted_need = hak_bigcache.needed;
	s->big_keys = hak_bigcache.keys;
	s->big_buckets = hak_bigcache.buckets;
	s->metadata_bytes = hak_bigcache.table_bytes;
	s->committed_bytes = s->whale_bytes + hak_bigcache.bytes[HAK_BIG_WHALE];
	hak_unlock(&hak_bigcache.lock);
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
		bool each = hak_policy_is_of_class(i);
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

/* A snapshot, and the rows of the classes that it is made from.  False: it would have taken long, and is not there. */
static HAK_COLD bool hak_stats_fill(hak_stats_t *s, hak_class_row_t row[HAK_CLASSES], hak_stats_how_t how)
{
	hak_heap_counters_t sum;
	hak_lock_row_t lock[HAK_LOCK_ROWS];
	uint64_t at_hand, then;

	memset(s, 0, sizeof *s);
	if (!hak_stats_collect_so(row, &sum, &at_hand, how, &s->read_us))
		return false;
	then = hak_os_ns(CLOCK_MONOTONIC);
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
	hak_unlock(&hak_whales.lock);
	uint32_t shards = hak_page_lock_all();
	s->shards = shards;
	s->shard_growths = hak_load(&hak_page.growths);
	hak_stats_large_locked(s);
	at_hand <<= HAK_UNIT_SHIFT;
	s->in_use_bytes -= s->in_use_bytes < at_hand ? s->in_use_bytes : at_hand;
	s->free_dirty_bytes = ((hak_shard_sum(dirty_units) + hak_shard_sum(purging_dirty)) << HAK_UNIT_SHIFT) + at_hand;
	s->free_clean_bytes = (hak_shard_sum(clean_units) + hak_shard_sum(purging_clean)) << HAK_UNIT_SHIFT;
	s->peak_in_use_bytes = hak_load(&hak_page.peak_shown);
	if (s->peak_in_use_bytes < s->in_use_bytes)
		s->peak_in_use_bytes = s->in_use_bytes;
	s->superslabs = hak_shard_sum(supers);
	s->superslabs_moved = hak_shard_sum(moved);
	s->runs_borrowed = hak_shard_sum(lent);
	s->purges = hak_shard_sum(purges);
	s->purged_bytes = hak_shard_sum(purged_units) << HAK_UNIT_SHIFT;
	for (uint32_t i = 0; i < hak_page.ranges; i++)
		s->address_space_bytes += hak_page.range[i].mapped;
	hak_page_unlock_all(shards);
	s->live_blocks += s->large_blocks + s->whale_blocks;
	s->live_bytes += s->large_bytes + s->whale_bytes;
	s->peak_used_bytes = hak_load(&hak_gauge.peak_all);
	s->capacity_bytes = hak_load(&hak_cache.bytes);
	s->peak_capacity_bytes = hak_load(&hak_cache.peak);
	hak_lock_uncounted(&hak_heaps.lock);
	s->heaps = hak_heaps.running + (hak_heap_by_id(HAK_OWNER_SHARED) ? 1 : 0);
	s->heaps_made = hak_heaps.made;
	s->threads_exited = hak_heaps.exited;
	hak_unlock(&hak_heaps.lock);
	hak_lock_uncounted(&hak_meta.lock);
	s->metadata_bytes += hak_meta.bytes + hak_load(&hak_sites.bytes);
	hak_unlock(&hak_meta.lock);
	hak_lock_uncounted(&hak_index.lock);
	s->index_bytes = hak_index.bytes;
	s->index_segments = hak_index.segments;
	s->index_missing = hak_index.missing;
	s->index_refusals = hak_index.refusals;
	hak_unlock(&hak_index.lock);
	s->sites = hak_load(&hak_sites.made) - (hak_load(&hak_sites.made) != 0);
	s->site_blocks_untracked = hak_load(&hak_sites.untracked);
	hak_ace_fill(s);
	/* Not the sum of its parts: that the two are the same is a law that the tests check. */
	s->committed_bytes += s->superslabs * HAK_SUPER + s->metadata_bytes; /* and mappings, live and kept */
	hak_lock_rows(lock);
	for (int i = 0; i < HAK_LOCK_ROWS - 1; i++) { /* the last is the claims */
		s->shared_locks += lock[i].taken;
		s->shared_locks_contended += lock[i].contended;
	}
	s->claims = lock[HAK_LOCK_ROWS - 1].taken;
	s->claims_contended = lock[HAK_LOCK_ROWS - 1].contended;
	s->read_us += (hak_os_ns(CLOCK_MONOTONIC) - then) / 1000;
	return how != HAK_STATS_ONCE || s->read_us <= HAK_STATS_US;
}

HAK_EXPORT HAK_COLD int hak_stats_snapshot(hak_stats_t *s, size_t size)
{
	hak_class_row_t row[HAK_CLASSES];
	if (size != sizeof *s)
		return HAK_ERR_SIZE;
	hak_stats_fill(s, row, HAK_STATS_WELL);
	return HAK_ERR_OK;
}

HAK_EXPORT HAK_COLD uint64_t hak_stat(const char *name)
{
	hak_stats_t s;
	const char *text = hak_stat_texts;
	hak_stats_snapshot(&s, sizeof s);
	for (size_t i = 0; i < HAK_STAT_COUNT; i++, text = hak_text_at(text, HAK_TEXTS))
		if (strcmp(text, name) == 0)
			return ((const uint64_t *)(const void *)&s)[i];
	return UINT64_MAX;
}

/* The tiers, out of the classes and the whole: whales are what is no class's. */
static HAK_COLD void hak_tier_fill(hak_tier_row_t *rows, const hak_stats_t *s, const hak_class_row_t *row)
{
	hak_tier_row_t *w = &rows[HAK_TIER_whale];

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
	w->live_blocks = s->large_blocks + s->whale_blocks;
	w->live_bytes = s->large_bytes + s->whale_bytes;
	w->allocs = s->allocs;
	w->frees = s->frees;
	w->alloc_bytes = s->alloc_bytes;
	w->freed_bytes = s->freed_bytes;
	for (uint32_t t = 0; t < HAK_TIER_whale; t++) {
		w->allocs -= rows[t].allocs;
		w->frees -= rows[t].frees;
		w->alloc_bytes -= rows[t].alloc_bytes;
		w->freed_bytes -= rows[t].freed_bytes;
	}
	w->misses = w->allocs;
	for (uint32_t t = 0; t < HAK_TIER_COUNT; t++)
		rows[t].peak_used_bytes = hak_load(&hak_gauge.peak[t]);
}

HAK_EXPORT HAK_COLD int hak_tier_table(hak_tier_row_t *rows, size_t row_size, int most)
{
	hak_class_row_t row[HAK_CLASSES];
	hak_stats_t s;

	if (most <= 0)
		return HAK_TIER_COUNT;
	if (row_size != sizeof *rows || most < HAK_TIER_COUNT)
		return -HAK_ERR_SIZE;
	hak_stats_fill(&s, row, HAK_STATS_WELL);
	hak_tier_fill(rows, &s, row);
	return HAK_TIER_COUNT;
}

HAK_EXPORT HAK_COLD const hak_option_row_t *hak_option_table(int *count)
{
	*count = HAK_OPTION_COUNT;
	return hak_option_all();
}

static HAK_COLD int hak_option_index(const char *name)
{
	const hak_option_row_t *rows = hak_option_all();
	for (int i = 0; i < HAK_OPTION_COUNT; i++)
		if (strcmp(rows[i].name, name) == 0)
			return i;
	return -1;
}

HAK_EXPORT HAK_COLD int hak_option_get(const char *name, int64_t *out)
{
	int i = hak_option_index(name);
	hak_boot_init();
	if (i < 0)
		return HAK_ERR_NO_OPTION;
	*out = hak_load(hak_option_place(i));
	return HAK_ERR_OK;
}

/* The value that the environment variable would give the option: numbers with suffixes, words for switches. */
HAK_EXPORT HAK_COLD int hak_option_parse(const char *name, const char *text, int64_t *out)
{
	int i = hak_option_index(name);
	if (i < 0)
		return HAK_ERR_NO_OPTION;
	if (!hak_option_parse_text(&hak_option_all()[i], text, out))
		return HAK_ERR_TEXT;
	return *out < hak_option_all()[i].least || *out > hak_option_all()[i].most ? HAK_ERR_RANGE : HAK_ERR_OK;
}

HAK_EXPORT HAK_COLD int hak_option_set(const char *name, int64_t value)
{
	int i = hak_option_index(name);
	hak_boot_init();
	if (i < 0)
		return HAK_ERR_NO_OPTION;
	if (value < hak_option_all()[i].least || value > hak_option_all()[i].most)
		return HAK_ERR_RANGE;
	if (hak_option_all()[i].when[0] == 's')
		return HAK_ERR_WHEN;
	hak_ace_set_option(hak_option_place(i), value);
	return HAK_ERR_OK;
}

/* The value of an option that is a text; NULL: there is no such option. */
HAK_EXPORT HAK_COLD const char *hak_option_text(const char *name)
{
	int i = hak_option_index(name);
	hak_boot_init();
	return i < 0 || hak_option_all()[i].type[0] != 't' ? NULL : hak_option_texts[i] ? hak_option_texts[i] : "";
}

/* Adds the rules of a text, written as HAKMEM_SITE_RULES has them; of two for one site the last counts.  The first that
 * is bad ends it; those before it hold. */
HAK_EXPORT HAK_COLD int hak_site_rule(const char *rule)
{
	hak_boot_init();
	return hak_rules_add(rule, false);
}

/* A text that stays, for others to point to.  NULL: out of memory. */
static HAK_COLD void hak_site_keep_text(const char **to, const char *text)
{
	const char *none = NULL;
	char *copy = hak_meta_alloc(strlen(text) + 1);
	if (copy) {
		memcpy(copy, text, strlen(text) + 1);
		hak_cas(to, &none, copy); /* if another thread was first, its text stays, and says the same */
	}
}

static HAK_COLD void hak_site_name(hak_site_t *s)
{
	hak_spot_t spot;
	char text[HAK_SITE_WHERE + 32];

	hak_spot_find(&spot, (uintptr_t)s->id, true);
	snprintf(text, sizeof text, *spot.module ? "%s+0x%llx" : "%s0x%llx", spot.module,
	         (unsigned long long)(*spot.module ? spot.offset : s->id));
	hak_site_keep_text(&s->place, text);
	text[0] = '\0';
	if (*spot.function)
		snprintf(text, sizeof text, "%s+0x%llx", spot.function, (unsigned long long)spot.into);
	hak_site_keep_text(&s->function, text);
}

static HAK_COLD void hak_site_fill(hak_site_row_t *to, uint32_t n)
{
	hak_site_t *s = &hak_sites.row[n];
	uint64_t policy = hak_site_policy(n);

	if (s->code && !hak_load_acquire(&s->function))
		hak_site_name(s);
	const char *place = hak_load_acquire(&s->place), *function = hak_load_acquire(&s->function);
	*to = (hak_site_row_t){.site = s->id, .place = !n ? "others" : place ? place : "", .function = function ? function : "",
		.lifetime = hak_group_names[hak_policy_group(policy)], .retain = (int64_t)hak_policy_keep(policy) - 1,
		.shard = (int64_t)hak_policy_shard(policy) - 1, .cached = !(policy & HAK_POLICY_UNCACHED)};
	for (uint32_t i = 0; i < HAK_SITE_COUNTS; i++) {
		const hak_site_count_t *c = &hak_sites.count[i * HAK_SITES_MAX + n];
		to->allocs += hak_load(&c->allocs);
		to->bytes += hak_load(&c->bytes);
		to->live_blocks += hak_load(&c->live);
		to->live_bytes += hak_load(&c->live_bytes);
	}
	if ((int64_t)to->live_blocks < 0 || (int64_t)to->live_bytes < 0) /* read between two of another thread's steps */
		to->live_blocks = to->live_bytes = 0;
}

/* The sites that have a row, and one row for all the others.  Returns how many there are, which may be more than fit. */
HAK_EXPORT HAK_COLD int hak_site_table(hak_site_row_t *rows, size_t row_size, int most)
{
	uint32_t made;

	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_boot_init();
	made = hak_load_acquire(&hak_sites.bucket) ? hak_load_acquire(&hak_sites.made) : 0;
	for (uint32_t n = 0; n < made && n < (uint32_t)(most > 0 ? most : 0); n++)
		hak_site_fill(&rows[n], n);
	return (int)made;
}

/* The rules that hold. */
HAK_EXPORT HAK_COLD int hak_rule_table(hak_rule_row_t *rows, size_t row_size, int most)
{
	int n = 0;

	if (most > 0 && row_size != sizeof *rows)
		return -HAK_ERR_SIZE;
	hak_boot_init();
	for (uint32_t i = 0, end = hak_load_acquire(&hak_sites.rules); i < end; i++) {
		const hak_rule_t *r = &hak_sites.rule[i];
		uint64_t policy = hak_load(&r->policy);
		if (policy && n++ < most)
			rows[n - 1] = (hak_rule_row_t){.where = r->where, .lifetime = hak_group_names[hak_policy_group(policy)],
				.retain = (int64_t)hak_policy_keep(policy) - 1, .shard = (int64_t)hak_policy_shard(policy) - 1,
				.cached = !(policy & HAK_POLICY_UNCACHED)};
	}
	return n;
}

/* What is at p, which may point anywhere. */
static HAK_COLD int hak_block_find(const void *p, hak_owner_t *out)
{
	uint32_t u, word, c, index;
	uintptr_t base = 0;

	hak_boot_init();
again:
	*out = (hak_owner_t){.class = UINT32_MAX, .tier = hak_tier[HAK_TIER_whale].name, .state = "live"};
	if (!(out->size = hak_lookup(p, &base)))
		return hak_unit_is_committed(hak_unit_of(p)) ? HAK_ERR_ALREADY_FREE : HAK_ERR_FOREIGN;
	out->base = base;
	u = hak_unit_of((const void *)base);
	word = hak_word(u);
	c = hak_word_class(word);
	if (hak_word_owner(word) >= HAK_OWNER_ORPHAN) {
		const hak_class_t *k = &hak_class[c];
		hak_heap_t *h = hak_word_owner(word) == HAK_OWNER_ORPHAN ? NULL : hak_heap_by_id(hak_word_owner(word));
		hak_lock_t *lock = h ? &h->claim : &hak_shard_of(u)->lock;
		const hak_slab_t *s = hak_slab_of(u);
		hak_lock(lock);
		if (hak_word(u) != word || (!h && lock != &hak_shard_of(u)->lock) || s->back
		    || (uintptr_t)p - base >= (size_t)s->len << HAK_UNIT_SHIFT) {
			hak_unlock(lock); /* another slab lies here now */
			goto again;
		}
		index = (uint32_t)(((uint64_t)((uintptr_t)p - base) * k->reciprocal) >> 40);
		bool never = index >= s->carved, isfree = never || ((s->map[index / 64] >> (index % 64)) & 1);
		out->base = base + (size_t)index * k->size;
		hak_unlock(lock);
		if (HAK_HARDENED) {
			bool start;
			isfree |= hak_note_state(hak_load(hak_note_of(p, hak_unit_of(p), k, &start))) != HAK_NOTE_LIVE;
		}
		out->size = k->size;
		out->class = k->base;
		out->heap = h && hak_load(&h->kept) != HAK_KEPT_WAITING ? h->id : 0;
		out->tier = hak_tier[k->tier].name;
		if (index >= k->blocks)
			return HAK_ERR_FOREIGN; /* the end of a slab, too short for a block */
		if (isfree)
			out->state = "free";
		else if (h && h == hak_own)
			for (uint32_t i = 0; i < hak_heap_level(h, c); i++)
				if ((uintptr_t)h->slot[h->floor[c] + 1 + i] == out->base)
					out->state = "cached";
		return HAK_ERR_OK;
	}
	if (word != HAK_RUN_HEAD && hak_unit_is_committed(u))
		return HAK_ERR_ALREADY_FREE; /* since it was found */
	return HAK_ERR_OK;
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
		*out = hak_realloc_for(p, n, HAK_CALLER);
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

/* ==================================================== C's report =============================================== */

/* What `python -m hakmem report` shows in its views summary, pools and classes, as text, without allocating. */
static struct { /* lock: live.  Too large for a small stack */
	char text[16 << 10];  /* written in one go, so that it stays whole where several processes write */
	size_t len;
	int fd;
	char path[PATH_MAX];
	hak_class_row_t class[HAK_CLASSES];
	hak_tier_row_t tier[HAK_TIER_COUNT];
	hak_stats_t stats;
} hak_report;

static HAK_COLD void hak_report_flush_locked(void)
{
	for (size_t done = 0; done < hak_report.len;) {
		ssize_t n = write(hak_report.fd, hak_report.text + done, hak_report.len - done);
		if (n <= 0 && (n == 0 || errno != EINTR))
			break;
		done += n > 0 ? (size_t)n : 0;
	}
	hak_report.len = 0;
}

static HAK_COLD __attribute__((format(printf, 1, 2))) void hak_report_line_locked(const char *format, ...)
{
	enum { LINE = 300 };
	va_list args;
	int len;

	if (sizeof hak_report.text - hak_report.len < LINE)
		hak_report_flush_locked();
	va_start(args, format);
	len = vsnprintf(hak_report.text + hak_report.len, LINE, format, args);
	va_end(args);
	if (len >= LINE)
		hak_report.text[hak_report.len + (size_t)(len = LINE - 1) - 1] = '\n';
	hak_report.len += (size_t)len;
}

static HAK_COLD void hak_report_write_locked(const char *when)
{
	hak_class_row_t *class = hak_report.class;
	hak_tier_row_t *tier = hak_report.tier;
	const char *name = hak_stat_texts, *help;
	uint64_t up = hak_os_now() - hak_boot.start;

	hak_stats_fill(&hak_report.stats, class, HAK_STATS_PATIENT);
	hak_tier_fill(tier, &hak_report.stats, class);
	hak_report_line_locked("hakmem " HAK_VERSION " " HAK_VARIANT ", process %d, %s, %llu.%03llu s after its first call\n\n",
	                (int)getpid(), when, (unsigned long long)(up / 1000), (unsigned long long)(up % 1000));
	for (size_t i = 0; i < HAK_STAT_COUNT; i++, name = hak_text_at(help, 1)) {
		const char *unit = hak_text_at(name, 1), *view = hak_text_at(unit, 1);
		uint64_t value = ((const uint64_t *)(const void *)&hak_report.stats)[i];
		help = hak_text_at(view, 1);
		if (strstr(view, "summary") || (value && strstr(view, "pools")))
			hak_report_line_locked("%20llu %-12s %-24s %s\n", (unsigned long long)value, unit, name, help);
	}
	hak_report_line_locked("\n%-8s %16s %16s %14s %18s %18s\n", "tier", "allocs", "frees", "live blocks", "live bytes", "cached bytes");
	for (size_t i = 0; i < HAK_TIER_COUNT; i++)
		hak_report_line_locked("%-8s %16llu %16llu %14llu %18llu %18llu\n", tier[i].name, (unsigned long long)tier[i].allocs,
		                (unsigned long long)tier[i].frees, (unsigned long long)tier[i].live_blocks,
		                (unsigned long long)tier[i].live_bytes, (unsigned long long)tier[i].cached_bytes);
	hak_report_line_locked("\n%8s %16s %16s %14s %18s %10s\n", "size", "allocs", "frees", "live blocks", "live bytes", "slabs");
	for (size_t i = 0; i < HAK_CLASSES; i++)
		if (class[i].allocs)
			hak_report_line_locked("%8llu %16llu %16llu %14llu %18llu %10llu\n", (unsigned long long)class[i].size,
			                (unsigned long long)class[i].allocs, (unsigned long long)class[i].frees,
			                (unsigned long long)class[i].live_blocks,
			                (unsigned long long)(class[i].live_blocks * class[i].size), (unsigned long long)class[i].slabs);
	hak_report_flush_locked();
}

/* Appends a report to the file that report_at_exit names, in which %p is the process's number; else to stderr.  Nobody
 * reads what it writes, or the file is as long as it may be: no signal for the program. */
static HAK_COLD void hak_report_locked(const char *when)
{
	const char *name = hak_option_texts[HAK_OPTION_report_at_exit];
	char *path = hak_report.path;
	bool to_file = name && *name && strcmp(name, "stderr") != 0;
	sigset_t ours, before, pending;
	size_t len = 0;

	hak_report.fd = STDERR_FILENO;
	if (to_file) {
		for (; *name && len < sizeof hak_report.path - 12; name++)
			if (name[0] == '%' && name[1] == 'p')
				name++, len += (size_t)snprintf(path + len, 12, "%d", (int)getpid());
			else
				path[len++] = *name;
		path[len] = '\0';
		errno = ENAMETOOLONG;
		hak_report.fd = *name ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
		if (hak_report.fd < 0) {
			char text[200];
			int error = errno;
			hak_sayf("hakmem: no report: %s: error %d\n", hak_say_text(text, sizeof text, path, SIZE_MAX), error);
			return;
		}
	}
	sigemptyset(&ours);
	sigaddset(&ours, SIGPIPE);
	sigaddset(&ours, SIGXFSZ);
	sigpending(&pending);
	if (sigismember(&pending, SIGPIPE)) /* the program's own */
		sigdelset(&ours, SIGPIPE);
	if (sigismember(&pending, SIGXFSZ))
		sigdelset(&ours, SIGXFSZ);
	pthread_sigmask(SIG_BLOCK, &ours, &before);
	hak_report_write_locked(when);
	while (sigtimedwait(&ours, NULL, &(struct timespec){0}) > 0)
		;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (to_file)
		close(hak_report.fd);
}

/* ============================================ seen from another process ======================================== */

/* Where the option stats_page says so, the process has two files in memory, which others find in /proc/PID/fd:
 *
 *   hakmem-stats     head | description | texts | counts | rows of each section, one section behind the other
 *   hakmem-command   what a reader wants done: it locks the file (flock), writes, sets `look`, and waits for `done`
 *
 * A command belongs to whoever takes it: the process, which then obeys it, or the reader, which thereby withdraws what
 * was not answered in its time.  Both do so by moving `taken` from the number before it to its own (a CAS; the reader
 * sets a bit, too), so that either it is obeyed, and `done` says when that is over, or it never will be.  A reader
 * writes a command only while none is being obeyed.  What one leaves that is killed the next reader withdraws, or the
 * process finds it too late (`until`) and only says so.
 *
 * The first is written by a thread that is in a slow path anyway, at most every HAK_LIVE_MS and for a hundredth of its
 * processor time, between two increments of `seq`: whoever reads compares seq before and after, and the sum of what it
 * has read.  Counts and rows are made elsewhere, where locks may be waited for, and copied in one go.
 * It describes itself, so that a reader of another version reads what both know, in lines of words between tabs:
 *
 *   hakmem  version  variant
 *   record  name  bytes of a row  offset of the first  most rows
 *   field   name  kind  unit  views  offset in the row  help                     (of the record above)
 *
 * Counts are two for each record: rows that stand there, and rows that there were.  In a row a text (kind z) is an
 * offset among the texts, each of which ends with NUL; 0 is the empty one.  What is long and seldom wanted (memory
 * piece by piece, call sites) comes in a third file of the same form, hakmem-detail, made when it is asked for and
 * gone when the reader says so, or seconds later.  No file needs its descriptor but to be found. */
#define HAK_LIVE_SECTIONS(X)                                                            \
	X(heap, hak_heap_row_t, 256, hak_heap_table)                                        \
	X(mapping, hak_mapping_t, 256, hak_mapping_table)                                   \
	X(lock, hak_lock_row_t, HAK_LOCK_ROWS, hak_lock_table)                              \
	X(shard, hak_shard_row_t, HAK_SHARDS_MAX, hak_shard_table)                          \
	X(big, hak_big_row_t, 256, hak_big_table)                                           \
	X(rule, hak_rule_row_t, 64, hak_rule_table)                                         \
	X(policy, hak_policy_row_t, HAK_POLICY_COUNT, hak_ace_policies)                     \
	X(decision, hak_decision_t, HAK_ACE_LOG, hak_ace_log)                               \
	X(option, hak_option_row_t, HAK_OPTION_COUNT, hak_option_rows_copy)                 \
	X(setting, hak_setting_t, HAK_OPTION_COUNT, hak_setting_table)
#define HAK_DETAIL_SECTIONS(X)                                                          \
	X(segment, hak_segment_t, 0, hak_segment_table)                                     \
	X(site, hak_site_row_t, 0, hak_site_table)

enum {
	HAK_LIVE_FORMAT = 1,
	HAK_COMMAND_FORMAT = 2,
	HAK_LIVE_MS = 1,               /* between two publications */
	HAK_LIVE_SHARE = 100,          /* ... at least, and so many times the processor time that the last one took ... */
	HAK_LIVE_WAIT = 10,            /* ... or so many times what it took from begin to end, where locks are waited for, ... */
	HAK_LIVE_WAIT_MS = 1000,       /* ... but not longer on that account */
	HAK_LIVE_LATE_MS = 100,        /* after so long also figures are shown that have to be waited for */
	HAK_LIVE_TEXTS = 128 << 10,    /* bytes for texts: ours, 64 rules and the longest site_rules; touched where used */
	HAK_LIVE_KNOWN = 1 << 10,      /* texts whose place is remembered, ... */
	HAK_LIVE_LOOKED = 8,           /* ... so far from where their address says */
	HAK_LIVE_PARTS = 16,           /* most sections of a file */
	HAK_DETAIL_MS = 10000,         /* how long details stay that nobody gives back */
	HAK_SITE_TEXT = 160,           /* bytes for the texts of a site, on average */
};

typedef struct hak_live_head { /* the same in all versions */
	char magic[8];                                /* "hakmem" */
	uint32_t format, abi;
	uint32_t pid, thread;                         /* thread: 1 if commands are obeyed at once */
	uint64_t size;                                /* bytes of the file */
	uint64_t text, text_len;                      /* the description */
	uint64_t words, words_len;                    /* the texts */
	uint64_t counts, sections;                    /* two 64-bit words for each section */
	uint64_t seq;                                 /* odd while somebody writes what follows, counts and rows */
	uint64_t published;                           /* how often */
	uint64_t at_ns, cost_ns;                      /* CLOCK_MONOTONIC when, and the processor time that it took */
	uint64_t sum;                                 /* of all 64-bit words of the counts and of the rows that stand there */
} hak_live_head_t;

enum { HAK_DO_NOTHING, HAK_DO_PUBLISH, HAK_DO_DETAIL, HAK_DO_RELEASE, HAK_DO_TRIM, HAK_DO_SET };
#define HAK_WITHDRAWN (1ull << 63) /* in taken */
typedef struct hak_live_command { /* likewise.  Written by the reader, but for pid, done, status and result; we believe none */
	char magic[8];
	uint32_t format, look;                        /* look: not 0 if there is something to do; a futex */
	uint32_t pid, reserved;                       /* whose file it is */
	uint64_t asked, taken, done;                  /* numbers of commands; taken: both sides, by CAS */
	uint64_t until;                               /* CLOCK_MONOTONIC in ns: then nobody waits for it any more */
	uint32_t what, status;                        /* HAK_DO_...; an error of HAK_ERRORS */
	int64_t value;                                /* set: the option's */
	uint64_t result;                              /* trim: bytes given back; detail: bytes of the file */
	char name[64];                                /* set: the option */
} hak_live_command_t;

typedef struct hak_live_section {
	const char *name;
	size_t row_size;
	uint32_t most;
	int (*fill)(void *rows, int most);            /* returns how many rows there are */
} hak_live_section_t;

typedef struct hak_live_file { /* lock: live.  Of what stands in the file, nothing but seq and published is read back */
	hak_file_t file;
	hak_live_head_t *head;                        /* NULL: there is none */
	char *own;                                    /* where counts and rows are made, at the places that they have in the file */
	uint64_t words, words_len, counts;            /* as in the head */
	const hak_live_section_t *section;
	const hak_record_t *record[HAK_LIVE_PARTS];
	uint64_t row[HAK_LIVE_PARTS];                 /* offsets of the first rows */
	uint32_t most[HAK_LIVE_PARTS];
	uint64_t words_used;
	uint64_t words_least;                         /* of these, those of the first publication since texts began anew */
	const char *known[HAK_LIVE_KNOWN];            /* texts that stand there, by hash of their address */
	uint32_t place[HAK_LIVE_KNOWN];
} hak_live_file_t;

/* The lock is taken before all others, in fork too.  It stands in no table: statistics would see mostly themselves. */
static struct { /* lock: live */
	hak_lock_t lock;
	bool forking;                                 /* fork holds it */
	hak_live_file_t page, detail;
	hak_file_t command_file;
	hak_live_command_t *command;                  /* NULL: there is none */
	int pid;                                      /* whose files these are, where hak_fork_page does not say it */
	uint32_t thread;                              /* 1: there is one that obeys at once */
	uint64_t detail_ms;                           /* when the details came */
	uint64_t shown_ms;                            /* when the page was last written */
	uint32_t report;                              /* anybody, atomic: the signal has come */
} hak_live;

static HAK_COLD int hak_option_rows_copy(hak_option_row_t *rows, size_t row_size, int most)
{
	memcpy(rows, hak_option_all(), row_size * (size_t)most);
	return HAK_OPTION_COUNT;
}

static HAK_COLD int hak_setting_table(hak_setting_t *rows, HAK_UNUSED size_t row_size, int most)
{
	for (int i = 0; i < most; i++)
		rows[i] = (hak_setting_t){.name = hak_option_all()[i].name, .value = hak_load(hak_option_place(i)),
			.text = hak_option_texts[i] ? hak_option_texts[i] : ""};
	return HAK_OPTION_COUNT;
}

#define HAK_LIVE_FILL(name, type, most, table) \
	static HAK_COLD int hak_live_fill_##name(void *rows, int n) { return table(rows, sizeof(type), n); }
HAK_LIVE_SECTIONS(HAK_LIVE_FILL)
HAK_DETAIL_SECTIONS(HAK_LIVE_FILL)
#define HAK_LIVE_SECTION(name, type, most, table) {#name, sizeof(type), most, hak_live_fill_##name},
static const hak_live_section_t hak_live_sections[] = {
	{"stats", sizeof(hak_stats_t), 1, NULL}, /* these three are of one moment */
	{"class", sizeof(hak_class_row_t), HAK_CLASSES, NULL},
	{"tier", sizeof(hak_tier_row_t), HAK_TIER_COUNT, NULL},
	HAK_LIVE_SECTIONS(HAK_LIVE_SECTION)};
static const hak_live_section_t hak_detail_sections[] = {HAK_DETAIL_SECTIONS(HAK_LIVE_SECTION)};
enum {
	HAK_LIVE_COUNT = sizeof hak_live_sections / sizeof *hak_live_sections,
	HAK_DETAIL_COUNT = sizeof hak_detail_sections / sizeof *hak_detail_sections,
};
_Static_assert((int)HAK_LIVE_COUNT <= (int)HAK_LIVE_PARTS, "hak_live_file_t");

/* Appends a word and what ends it; without `to` it only counts.  (snprintf would be most of what a page costs at first.) */
static HAK_COLD size_t hak_live_put(char *to, size_t len, const char *word, char end)
{
	size_t n = strlen(word);
	if (to) {
		memcpy(to + len, word, n);
		to[len + n] = end;
	}
	return len + n + 1;
}

static HAK_COLD size_t hak_live_put_number(char *to, size_t len, uint64_t number, char end)
{
	char digits[21], *d = digits + sizeof digits - 1;
	*d = '\0';
	do
		*--d = (char)('0' + number % 10);
	while (number /= 10);
	return hak_live_put(to, len, d, end);
}

/* The description, or without `to` its length. */
static HAK_COLD size_t hak_live_describe(const hak_live_file_t *f, size_t count, char *to)
{
	size_t len = hak_live_put(to, 0, "hakmem", '\t');
	len = hak_live_put(to, len, HAK_VERSION, '\t');
	len = hak_live_put(to, len, HAK_VARIANT, '\n');
	for (size_t i = 0; i < count; i++) {
		const hak_record_t *r = f->record[i];
		const char *name = r->texts;
		len = hak_live_put(to, len, "record", '\t');
		len = hak_live_put(to, len, r->name, '\t');
		len = hak_live_put_number(to, len, r->size, '\t');
		len = hak_live_put_number(to, len, f->row[i], '\t');
		len = hak_live_put_number(to, len, f->most[i], '\n');
		for (uint32_t k = 0; k < r->count; k++, name = hak_text_at(name, HAK_TEXTS)) {
			const char kind[] = {r->kinds[k], '\0'}, *unit = hak_text_at(name, 1), *view = hak_text_at(unit, 1);
			len = hak_live_put(to, len, "field", '\t');
			len = hak_live_put(to, len, name, '\t');
			len = hak_live_put(to, len, kind, '\t');
			len = hak_live_put(to, len, unit, '\t');
			len = hak_live_put(to, len, view, '\t');
			len = hak_live_put_number(to, len, r->fields[k].offset, '\t');
			len = hak_live_put(to, len, hak_text_at(view, 1), '\n');
		}
	}
	return len;
}

static HAK_COLD void hak_live_place(hak_live_file_t *f, const hak_live_section_t *section, size_t count)
{
	f->section = section;
	for (size_t i = 0; i < count; i++)
		for (size_t k = 0; k < sizeof hak_records / sizeof *hak_records; k++)
			if (strcmp(hak_records[k].name, section[i].name) == 0)
				f->record[i] = &hak_records[k];
}

/* Makes a file of these sections; most: rows for each.  False: the system gives none. */
static HAK_COLD bool hak_live_make_locked(hak_live_file_t *f, const char *name, const hak_live_section_t *section,
                                          size_t count, const uint32_t *most, size_t words)
{
	hak_live_head_t head = {.magic = "hakmem", .format = HAK_LIVE_FORMAT, .abi = HAK_ABI, .pid = (uint32_t)hak_live.pid,
		.thread = hak_live.thread, .sections = count, .words_len = words};
	uint64_t magic;

	memset(f, 0, sizeof *f);
	hak_live_place(f, section, count);
	for (size_t i = 0; i < count; i++)
		f->most[i] = most ? most[i] : section[i].most;
	head.text = hak_round_up(sizeof head, HAK_LINE_SIZE);
	head.text_len = hak_live_describe(f, count, NULL) + count * 20; /* offsets are not known yet, and need more digits */
	head.words = hak_round_up(head.text + head.text_len + 1, HAK_LINE_SIZE);
	head.counts = hak_round_up(head.words + head.words_len, HAK_LINE_SIZE);
	head.size = hak_round_up(head.counts + count * 2 * sizeof(uint64_t), HAK_LINE_SIZE);
	for (size_t i = 0; i < count; i++) {
		f->row[i] = head.size;
		head.size = hak_round_up(head.size + f->most[i] * section[i].row_size, HAK_LINE_SIZE);
	}
	head.size = hak_round_up(head.size, hak_boot.os_page);
	if (!(f->own = hak_os_map(head.size, PROT_READ | PROT_WRITE)))
		return false;
	if (!hak_os_share(&f->file, name, head.size, true)) {
		hak_os_unmap(f->own, head.size);
		return false;
	}
	head.text_len = hak_live_describe(f, count, (char *)f->file.at + head.text);
	f->words = head.words;
	f->words_len = head.words_len;
	f->counts = head.counts;
	f->words_used = 1;
	memcpy(&magic, head.magic, sizeof magic);
	memset(head.magic, 0, sizeof head.magic);
	f->head = f->file.at;
	*f->head = head;
	hak_store_release((uint64_t *)(void *)f->head->magic, magic); /* who sees it sees the rest of the head */
	return true;
}

static HAK_COLD void hak_live_drop_locked(hak_live_file_t *f)
{
	if (!f->head)
		return;
	f->head = NULL;
	hak_os_unshare(&f->file);
	hak_os_unmap(f->own, f->file.len);
}

/* The place of a text of ours among those of the file; 0 where there is no room. */
static HAK_COLD uint64_t hak_live_word_locked(hak_live_file_t *f, const char *text)
{
	size_t at = (size_t)(((uintptr_t)text >> 3) * 0x9E3779B97F4A7C15u >> 54) % HAK_LIVE_KNOWN, looked = 0, len;

	if (!text || !*text)
		return 0;
	for (; looked < HAK_LIVE_LOOKED && f->known[at]; looked++, at = (at + 1) % HAK_LIVE_KNOWN)
		if (f->known[at] == text)
			return f->place[at];
	len = strlen(text) + 1;
	if (f->words_used + len > f->words_len)
		return 0;
	memcpy((char *)f->head + f->words + f->words_used, text, len);
	f->words_used += len;
	if (looked < HAK_LIVE_LOOKED) {
		f->known[at] = text;
		f->place[at] = (uint32_t)(f->words_used - len);
	}
	return f->words_used - len;
}

/* Texts begin anew, and until those that follow are published nobody reads.  Texts that found no place among the known
 * stand there once more with each publication, and those of rules that were taken back stay: this is for when half of
 * the room is full of such. */
static HAK_COLD void hak_live_forget_texts_locked(hak_live_file_t *f)
{
	(void)hak_exchange(&f->head->seq, f->head->seq | 1);
	memset(f->known, 0, sizeof f->known);
	f->words_used = 1;
	f->words_least = 0;
}

/* Rows of a section stand there, n of them there are: texts become offsets.  Returns the sum of its words. */
static HAK_COLD uint64_t hak_live_settle_locked(hak_live_file_t *f, size_t i, int n)
{
	char *rows = f->own + f->row[i];
	uint64_t *count = (uint64_t *)(void *)(f->own + f->counts) + 2 * i, sum;

	count[1] = n < 0 ? 0 : (uint64_t)n;
	count[0] = count[1] < f->most[i] ? count[1] : f->most[i];
	sum = count[0] + count[1];
	for (uint32_t k = 0; k < f->record[i]->count; k++)
		if (f->record[i]->kinds[k] == 'z')
			for (uint64_t r = 0; r < count[0]; r++) {
				char *at = rows + r * f->record[i]->size + f->record[i]->fields[k].offset;
				*(uint64_t *)(void *)at = hak_live_word_locked(f, *(const char **)(void *)at);
			}
	for (uint64_t w = 0, words = count[0] * f->record[i]->size / sizeof(uint64_t); w < words; w++)
		sum += ((const uint64_t *)(const void *)rows)[w];
	return sum;
}

/* False: it would have taken long, and is not shown. */
static HAK_COLD bool hak_live_publish_locked(hak_live_file_t *f, size_t count, hak_stats_how_t how)
{
	hak_live_head_t *head = f->head;
	uint64_t sum = 0, begin = hak_os_ns(CLOCK_THREAD_CPUTIME_ID), seq = head->seq;
	char *rows = f->own;
	hak_class_row_t *class = (hak_class_row_t *)(void *)(rows + f->row[1]);
	hak_stats_t *s = (hak_stats_t *)(void *)(rows + f->row[0]);

	/* First what may be refused: from the texts' new beginning on there is no way back. */
	if (!f->section[0].fill && !hak_stats_fill(s, class, how))
		return false;
	if (f->words_least && f->words_used - f->words_least > (f->words_len - f->words_least) / 2)
		hak_live_forget_texts_locked(f);
	for (size_t i = 0; i < count; i++)
		if (f->section[i].fill) {
			sum += hak_live_settle_locked(f, i, f->section[i].fill(rows + f->row[i], (int)f->most[i]));
		} else if (i == 0) {
			hak_tier_fill((hak_tier_row_t *)(void *)(rows + f->row[2]), s, class);
			sum += hak_live_settle_locked(f, 0, 1) + hak_live_settle_locked(f, 1, HAK_CLASSES)
			     + hak_live_settle_locked(f, 2, HAK_TIER_COUNT);
		}
	if (!f->words_least)
		f->words_least = f->words_used;
	/* All that had to be waited for is there.  A reader finds the file being written for no longer than this takes. */
	(void)hak_exchange(&head->seq, seq + 1);
	memcpy((char *)head + f->counts, rows + f->counts, count * 2 * sizeof(uint64_t));
	for (size_t i = 0; i < count; i++)
		memcpy((char *)head + f->row[i], rows + f->row[i], ((uint64_t *)(void *)(rows + f->counts))[2 * i] * f->record[i]->size);
	head->sum = sum;
	head->published++;
	head->at_ns = hak_os_ns(CLOCK_MONOTONIC);
	head->cost_ns = hak_os_ns(CLOCK_THREAD_CPUTIME_ID) - begin;
	hak_store_release(&head->seq, seq + 2);
	return true;
}

/* Memory piece by piece, and call sites.  Returns the bytes of the file; 0: it cannot be had. */
static HAK_COLD uint64_t hak_live_detail_locked(void)
{
	uint32_t most[HAK_DETAIL_COUNT];
	size_t words = HAK_LIVE_TEXTS;

	hak_live_drop_locked(&hak_live.detail);
	for (size_t i = 0; i < HAK_DETAIL_COUNT; i++) {
		int n = hak_detail_sections[i].fill(NULL, 0);
		most[i] = (uint32_t)n + (uint32_t)n / 8 + 8; /* there may be more in a moment */
	}
	words += (size_t)most[HAK_DETAIL_COUNT - 1] * HAK_SITE_TEXT;
	if (!hak_live_make_locked(&hak_live.detail, "hakmem-detail", hak_detail_sections, HAK_DETAIL_COUNT, most, words))
		return 0;
	hak_live_publish_locked(&hak_live.detail, HAK_DETAIL_COUNT, HAK_STATS_PATIENT);
	hak_live.detail_ms = hak_os_now();
	return hak_live.detail.file.len;
}

/* False in a child, whose files are its own, until it has some.  One of vfork is in its parent's memory, and is it. */
static HAK_COLD bool hak_live_is_ours(void)
{
	return hak_fork_page ? hak_load(&hak_fork_page[1]) != 0 : hak_live.pid == getpid();
}

/* The process's own files, instead of those that a child has of its parent. */
static HAK_COLD void hak_live_open_locked(void)
{
	hak_store(&hak_watch.look, &hak_watch.calm);
	hak_live_drop_locked(&hak_live.page);
	hak_live_drop_locked(&hak_live.detail);
	if (hak_live.command) /* it stays mapped: another thread may look at it */
		hak_os_close(&hak_live.command_file);
	hak_live.command = NULL;
	hak_store(&hak_watch.next, 0u);
	if (hak_fork_page && hak_load(hak_fork_page) == 0)
		hak_live.thread = 0; /* a child without fork's handlers has none of its parent's threads */
	hak_live.pid = getpid();
	if (!hak_os_share(&hak_live.command_file, "hakmem-command", hak_boot.os_page, false)) {
		hak_live.pid = 0; /* no memory, no descriptor, or no system call: nobody sees us yet */
		return;
	}
	hak_live.command = hak_live.command_file.at;
	hak_live.command->format = HAK_COMMAND_FORMAT;
	hak_live.command->pid = (uint32_t)hak_live.pid;
	memcpy(hak_live.command->magic, "hakmem", sizeof "hakmem");
	hak_hg_relaxed(hak_live.command->look);
	if (!hak_live_make_locked(&hak_live.page, "hakmem-stats", hak_live_sections, HAK_LIVE_COUNT, NULL, HAK_LIVE_TEXTS)) {
		hak_os_unshare(&hak_live.command_file); /* nobody has looked at it yet, and the next attempt makes another */
		hak_live.command = NULL;
		hak_live.pid = 0;
		return;
	}
	if (hak_fork_page)
		hak_store(&hak_fork_page[1], 1u);
	hak_store(&hak_watch.look, &hak_live.command->look);
	if (hak_live.thread) { /* it may wait for the other word */
		hak_store(&hak_watch.calm, 1u);
		syscall(SYS_futex, &hak_watch.calm, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	}
}

/* For a reader: the command that stands in the page is to be obeyed. */
HAK_EXPORT HAK_COLD void hak_command_send(hak_live_command_t *c)
{
	hak_store_release(&c->asked, hak_load(&c->asked) + 1);
	hak_store_release(&c->look, 1u);
	syscall(SYS_futex, &c->look, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* For a reader: the last command is not obeyed if it is not by now.  False: it is, or has been. */
HAK_EXPORT HAK_COLD bool hak_command_withdraw(hak_live_command_t *c)
{
	uint64_t asked = hak_load(&c->asked), taken = hak_load(&c->taken);

	if ((taken & ~HAK_WITHDRAWN) == asked - 1 && hak_cas(&c->taken, &taken, asked | HAK_WITHDRAWN))
		return true;
	return taken == (asked | HAK_WITHDRAWN);
}

/* Does what a reader wants.  Returns its number, 0: none. */
static HAK_COLD uint64_t hak_live_obey_locked(void)
{
	hak_live_command_t *c = hak_live.command;
	uint64_t asked = hak_load_acquire(&c->asked), taken = hak_load(&c->taken);
	char name[sizeof c->name];

	if ((taken & ~HAK_WITHDRAWN) != asked - 1) {
		/* Neither the next nor this one, and nobody has asked since: rubbish, which would stand in the way for ever. */
		if ((taken & ~HAK_WITHDRAWN) != asked && hak_load_acquire(&c->asked) == asked)
			(void)hak_cas(&c->taken, &taken, asked | HAK_WITHDRAWN);
		return 0;
	}
	if (!hak_cas(&c->taken, &taken, asked))
		return 0;
	c->status = HAK_ERR_OK;
	c->result = 0;
	switch (hak_os_ns(CLOCK_MONOTONIC) > hak_load(&c->until) ? HAK_DO_NOTHING : hak_load(&c->what)) {
	case HAK_DO_NOTHING:
		c->status = HAK_ERR_LATE;
		break;
	case HAK_DO_PUBLISH: /* below */
		break;
	case HAK_DO_DETAIL:
		if (!(c->result = hak_live_detail_locked()))
			c->status = HAK_ERR_NOMEM;
		break;
	case HAK_DO_RELEASE:
		hak_live_drop_locked(&hak_live.detail);
		break;
	case HAK_DO_TRIM:
		c->result = hak_trim();
		break;
	case HAK_DO_SET:
		memcpy(name, c->name, sizeof name);
		name[sizeof name - 1] = '\0';
		c->status = (uint32_t)hak_option_set(name, hak_load(&c->value));
		break;
	default:
		c->status = HAK_ERR_COMMAND;
	}
	return asked;
}

/* How many ms no more is published after what took so long. */
static HAK_COLD uint64_t hak_live_rest(uint64_t cpu_ns, uint64_t took_ms)
{
	uint64_t rest = cpu_ns * HAK_LIVE_SHARE / 1000000;
	took_ms *= HAK_LIVE_WAIT;
	took_ms = took_ms < HAK_LIVE_WAIT_MS ? took_ms : HAK_LIVE_WAIT_MS;
	rest = rest > took_ms ? rest : took_ms;
	return rest > HAK_LIVE_MS ? rest : HAK_LIVE_MS;
}

/* Something may be wanted: a report, a command, a publication. */
static HAK_COLD void hak_live_act_locked(void)
{
	uint64_t asked, begin = hak_os_now(), now;

	if (hak_option.stats_page && !hak_live_is_ours())
		hak_live_open_locked(); /* what stands in `look` until then is our parent's */
	(void)hak_exchange(hak_load(&hak_watch.look), 0u); /* then see what is wanted: who wants more sets it again */
	if (hak_load(&hak_live.report)) {
		hak_store(&hak_live.report, 0u);
		hak_report_locked("on a signal");
	}
	if (hak_live.page.head) {
		asked = hak_live_obey_locked();
		bool due = hak_watch_is_due(), waits = asked || begin - hak_live.shown_ms > HAK_LIVE_LATE_MS;
		bool shown = (asked || due) && hak_live_publish_locked(&hak_live.page, HAK_LIVE_COUNT,
		                                                       waits ? HAK_STATS_PATIENT : HAK_STATS_ONCE);
		if (asked)
			hak_store_release(&hak_live.command->done, asked);
		now = hak_os_now();
		if (shown) {
			hak_live.shown_ms = now;
			hak_store(&hak_watch.shown, hak_gauge_sum());
		}
		hak_store(&hak_watch.soon, hak_os_ns(CLOCK_MONOTONIC) + hak_live.page.head->cost_ns * HAK_WATCH_PAYS);
		hak_store(&hak_watch.next, now + hak_live_rest(hak_live.page.head->cost_ns, waits ? now - begin : 0));
		if (hak_live.detail.head && now - hak_live.detail_ms > HAK_DETAIL_MS)
			hak_live_drop_locked(&hak_live.detail);
	} else if (hak_option.stats_page) {
		hak_store(&hak_watch.next, hak_os_now() + HAK_DETAIL_MS); /* the system may have more then, and not before */
		hak_store(&hak_watch.soon, UINT64_MAX);
	}
}

/* From a slow path; no lock, no claim. */
static HAK_COLD void hak_live_act(void)
{
	int saved = errno;
	if (hak_fork_is_here() || !hak_lock_try(&hak_live.lock))
		return;
	hak_live_act_locked();
	hak_unlock(&hak_live.lock);
	errno = saved;
}

/* Waits for the lock, but not in a child without fork's handlers, where whoever holds it may have been left behind.
 * False: it was not to be had. */
static HAK_COLD bool hak_live_lock(void)
{
	if (hak_fork_page && hak_load(hak_fork_page) == 0)
		return hak_lock_try(&hak_live.lock);
	hak_lock(&hak_live.lock);
	return true;
}

/* stats_page=2: obeys at once, also while the program sleeps.  It takes no processor time until a reader wakes it. */
static _Noreturn HAK_COLD void *hak_live_run(HAK_UNUSED void *argument)
{
	pthread_setname_np(pthread_self(), "hakmem-stats");
	for (;;) {
		uint32_t *look = hak_load(&hak_watch.look);
		syscall(SYS_futex, look, FUTEX_WAIT, 0, NULL, NULL, 0);
		if (hak_load(look)) {
			hak_lock(&hak_live.lock);
			hak_live_act_locked();
			hak_unlock(&hak_live.lock);
		}
	}
}

static HAK_COLD void hak_live_start_thread(void)
{
	if (hak_os_thread(hak_live_run))
		return; /* the head says that there is none */
	hak_lock(&hak_live.lock);
	hak_live.thread = 1;
	if (hak_live.page.head)
		hak_live.page.head->thread = 1;
	hak_unlock(&hak_live.lock);
}

static HAK_COLD void hak_live_on_signal(HAK_UNUSED int number)
{
	hak_store(&hak_live.report, 1u);
	hak_store_release(hak_load(&hak_watch.look), 1u);
}

/* By the library's constructor. */
static HAK_START void hak_live_start(void)
{
	static const int numbers[] = {0, SIGHUP, SIGUSR1, SIGUSR2, SIGQUIT, SIGALRM, SIGWINCH, SIGPWR};
	int number = hak_option.report_signal ? numbers[hak_option.report_signal] : 0, saved = errno;
	struct sigaction now, ours = {.sa_handler = hak_live_on_signal, .sa_flags = SA_RESTART};

	if (!number && !hak_option.stats_page)
		return;
	if (number && sigaction(number, NULL, &now) == 0 && now.sa_handler == SIG_DFL)
		sigaction(number, &ours, NULL);
	if (hak_option.stats_page) {
		hak_lock(&hak_live.lock);
		hak_store(&hak_watch.next, 0u);
		hak_live_act_locked(); /* so that what has not begun to allocate can be seen, too */
		hak_unlock(&hak_live.lock);
	}
	hak_store(&hak_watch.act, hak_live_act);
	if (hak_option.stats_page > 1)
		hak_live_start_thread();
	errno = saved;
}

/* A child's files are its own, and it makes them when it first has something to show: many only call exec.  With its
 * parent's it has nothing to do, so that nobody takes them for its own. */
static HAK_COLD void hak_live_child(void)
{
	int saved = errno;

	hak_store(&hak_live.report, 0u); /* the signal was its parent's */
	hak_store(&hak_watch.calm, 0u);
	if (!hak_option.stats_page)
		return;
	hak_live.thread = 0;
	hak_store(&hak_watch.look, &hak_watch.calm);
	hak_live_drop_locked(&hak_live.page);
	hak_live_drop_locked(&hak_live.detail);
	if (hak_live.command) {
		hak_os_unshare(&hak_live.command_file);
		hak_live.command = NULL;
	}
	hak_live.pid = 0;
	hak_store(&hak_watch.next, 0u);
	errno = saved;
}

/* Its threads. */
static HAK_COLD void hak_live_child_threads(void)
{
	int saved = errno;
	if (hak_option.stats_page < 2)
		return;
	hak_live_act();
	hak_live_start_thread();
	errno = saved;
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
		for (hak_lock_t *l = hak_shared_locks[i].lock; l; l = hak_shared_lock_next(l))
			act(l);
}

static HAK_COLD void hak_fork_take(hak_lock_t *l) { hak_lock(l); }
static HAK_COLD void hak_fork_drop(hak_lock_t *l) { hak_unlock(l); }
static HAK_COLD void hak_fork_renew(hak_lock_t *l) { hak_lock_renew(l); }

static HAK_COLD void hak_fork_prepare(void)
{
	bool live = hak_live_lock();
	/* What other threads have sent so far arrives; see hak_fork_forget. */
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_load_acquire(&hak_heaps.made); id++)
		hak_heap_drain(hak_heap_by_id(id), hak_own->id ? hak_own : NULL);
	hak_lock(&hak_heaps.lock);
	hak_fork_each_claim(hak_fork_take);
	hak_fork_each_shared(hak_fork_take);
	hak_live.forking = live;
	hak_store(&hak_fork_thread, &hak_thread);
}

static HAK_COLD void hak_fork_parent(void)
{
	hak_store(&hak_fork_thread, NULL);
	for (size_t i = HAK_LOCK_COUNT; --i > 0;) /* the shards before the purge lock, which keeps their number as it is */
		for (hak_lock_t *l = hak_shared_locks[i].lock, *next; l; l = next) {
			next = hak_shared_lock_next(l);
			hak_fork_drop(l);
		}
	hak_fork_each_claim(hak_fork_drop);
	bool live = hak_live.forking;
	hak_unlock(&hak_heaps.lock);
	if (live)
		hak_unlock(&hak_live.lock);
}

/* The system copies a process page by page, while its other threads go on: what they write without a lock may have
 * been copied in part.  The child drops it: the other threads' stacks and outgoing batches, and what was put into an
 * inbox since fork-prepare.  Those blocks stay used for ever, as do the blocks that the threads held themselves. */
static HAK_COLD void hak_fork_forget(hak_heap_t *h)
{
	for (uint32_t c = 0; (c = hak_heap_served(h, c)) < HAK_CLASS_COUNT; c++) {
		/* As if the thread had taken all that stood there: so the counts say as well that it is used. */
		hak_store(&h->v[c], h->v[c] + ((uint64_t)hak_heap_level(h, c) << 16));
		hak_heap_stack_reset(h, c);
	}
	for (uint32_t i = 0; i < HAK_OUT_SLOTS; i++)
		h->out[i] = NULL;
	h->outs = 0;
	h->spare = NULL;
	h->spares = 0;
	h->lost = 0;
}

/* A child made without these handlers finds locks and lists as they are at that moment.  While no other thread is in a
 * slow path, that is whole, and the heaps of the threads it has not got are to it like those of idle threads: it helps
 * them, and in the end takes their slabs.  Else it may call exec and nothing more, which is what the C library
 * promises; no list could be trusted, so there is nothing to repair. */
static HAK_START void hak_fork_watch(void)
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
	hak_heap_t *self = hak_own->id ? hak_own : NULL;

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
		hak_store(&h->returned, NULL);
		if (h->running)
			hak_store(&h->inbox, NULL);
		if (h->running && h != self)
			hak_fork_forget(h);
	}
	for (uint32_t id = HAK_OWNER_FIRST; id < HAK_OWNER_FIRST + hak_heaps.made; id++) {
		hak_heap_t *h = hak_heap[id];
		if (h && h->running && h != self)
			hak_heap_retire(h, true);
	}
	hak_live_child();
	hak_lock_renew(&hak_live.lock);
	hak_ace_start();
	hak_live_child_threads();
}

#ifdef HAK_PTHREAD_LOCKS
/* What P0 reads without the lock under which it is written; the stores are atomic. */
static void hak_hg_declare(void)
{
	hak_heap_t *h = hak_heap_shared();

	hak_hg_relaxed(hak_option.purge_ms);    /* by whoever acts on it, while hak_option_set writes it */
	hak_hg_relaxed(hak_option.retain);
	hak_hg_relaxed(hak_target);             /* by whoever acts on them, while ACE or hak_option_set publishes */
	hak_hg_relaxed(hak_fork_thread);        /* hak_unlock, to know whether this thread is in fork */
	hak_hg_relaxed(hak_option.shard_threshold);
	hak_hg_relaxed(hak_page.shards);        /* whoever looks for a shard; the next four, too */
	hak_hg_relaxed(hak_page.waits);
	hak_hg_relaxed(hak_page.waits_stamp);
	hak_hg_relaxed(hak_page.nonempty);
	hak_hg_relaxed(hak_page.orphaned);
	hak_hg_relaxed(hak_page.peak_bytes);    /* hak_page_peak */
	hak_hg_relaxed(hak_page.peak_shown);
	hak_hg_relaxed(hak_gauge);              /* hak_reset_peaks, beside hak_gauge_raise */
	hak_hg_relaxed(hak_index.missing);      /* hak_lookup, which found nothing */
	hak_hg_relaxed(hak_index.turn);         /* hak_index_find */
	hak_hg_relaxed(hak_whales.bytes);       /* hak_page_peak */
	hak_hg_relaxed(hak_option.bigcache);
	hak_hg_relaxed(hak_bigcache.stamp);
	hak_hg_relaxed(hak_bigcache.bytes);
	hak_hg_relaxed(h->count);               /* hak_stats_collect */
	hak_hg_relaxed(hak_sites.on);           /* hak_alloc_at */
	hak_hg_relaxed(hak_sites.made);         /* hak_stats_fill, hak_site_meet_slow */
	hak_hg_relaxed(hak_sites.bytes);        /* hak_stats_fill */
	for (size_t i = 0; i < HAK_LOCK_COUNT; i++) { /* hak_lock_rows */
		hak_hg_relaxed(hak_shared_locks[i].lock->taken);
		hak_hg_relaxed(hak_shared_locks[i].lock->contended);
	}
	for (size_t i = 0; i < HAK_SHARDS_MAX; i++) { /* hak_shard_sum, hak_shard_peek, hak_page_is_due */
		hak_hg_relaxed(hak_page.shard[i].count);
		hak_hg_relaxed(hak_page.shard[i].nonempty);
		hak_hg_relaxed(hak_page.shard[i].oldest_stamp);
		hak_hg_relaxed(hak_page.shard[i].lock.taken);
		hak_hg_relaxed(hak_page.shard[i].lock.contended);
	}
	hak_hg_relaxed(h->claim.taken);
	hak_hg_relaxed(h->claim.contended);
	hak_hg_relaxed(hak_watch);              /* hak_watch_tick */
	hak_hg_relaxed(hak_live.report);        /* hak_live_on_signal */
}
#else
#define hak_hg_declare() ((void)0)
#endif

__attribute__((constructor)) static HAK_START void hak_boot_constructor(void)
{
	hak_boot_init();
	hak_hg_declare();
	hak_fork_watch();
	hak_atfork(hak_fork_prepare, hak_fork_parent, hak_fork_child); /* may allocate */
	hak_ace_start();
	hak_live_start();
}

/* A handler of a signal may end the process in the middle of a slow path, and no lock that this thread holds would ever
 * be let go of. */
static bool hak_exit_waits; /* the thread that ends the process: a lock was not to be had for so long */
static HAK_COLD void hak_exit_try(hak_lock_t *l)
{
	for (int ms = 0; HAK_LOCKING && !hak_exit_waits && !hak_lock_grab(l); ms++) {
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		hak_exit_waits = ms == 500;
	}
	if (HAK_LOCKING && !hak_exit_waits)
		hak_lock_let_go(l);
}

/* The last of the process, after its own atexit handlers. */
__attribute__((destructor)) static HAK_START void hak_boot_destructor(void)
{
	const char *name = hak_option_texts[HAK_OPTION_report_at_exit];
	if (!name || !*name || hak_load(&hak_dying))
		return;
	hak_exit_try(&hak_live.lock);
	hak_exit_try(&hak_heaps.lock);
	hak_fork_each_claim(hak_exit_try);
	hak_fork_each_shared(hak_exit_try);
	if (hak_exit_waits) {
		hak_sayf("hakmem: no report: the process ends in the middle of a call of the allocator\n");
	} else if (hak_live_lock()) {
		hak_report_locked("at its end");
		hak_unlock(&hak_live.lock);
	}
}

/* =============================================== libc and C++ overrides ======================================== */

#ifndef HAK_NO_OVERRIDE

#include <malloc.h>

#if defined(__has_attribute) && !defined(__clang__)
#define HAK_ALIAS(of) __attribute__((alias(#of), visibility("default"), copy(of)))
#else
#define HAK_ALIAS(of) __attribute__((alias(#of), visibility("default")))
#endif

HAK_EXPORT void *malloc(size_t n) { return hak_hot_malloc(n, HAK_INLINED); }
HAK_EXPORT void free(void *p) { hak_hot_free(p); }
void cfree(void *p) HAK_ALIAS(hak_free);
void *calloc(size_t count, size_t size) HAK_ALIAS(hak_calloc);
void *realloc(void *p, size_t n) HAK_ALIAS(hak_realloc);
size_t malloc_usable_size(void *p) HAK_ALIAS(hak_usable_size);

HAK_EXPORT void *reallocarray(void *p, size_t count, size_t size)
{
	size_t n;
	if (__builtin_mul_overflow(count, size, &n))
		return hak_refuse(ENOMEM);
	return hak_realloc_for(p, n, HAK_CALLER);
}

HAK_EXPORT int posix_memalign(void **out, size_t align, size_t n)
{
	int saved = errno;
	void *p;
	if (align < sizeof(void *) || (align & (align - 1)))
		return EINVAL;
	p = hak_aligned(align, n, HAK_CALLER);
	errno = saved;
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

HAK_EXPORT void *aligned_alloc(size_t align, size_t n) { return hak_aligned_for(align, n, HAK_CALLER); }

/* As glibc's: an alignment that is not a power of two is rounded up to one. */
HAK_EXPORT void *memalign(size_t align, size_t n)
{
	size_t power = 16;
	while (power < align && power <= PTRDIFF_MAX / 2)
		power *= 2;
	return hak_aligned(power, n, HAK_CALLER);
}

HAK_EXPORT void *valloc(size_t n)
{
	hak_boot_init();
	return hak_aligned(hak_boot.os_page, n, HAK_CALLER);
}

HAK_EXPORT void *pvalloc(size_t n)
{
	hak_boot_init();
	if (n > PTRDIFF_MAX - hak_boot.os_page)
		return hak_refuse(ENOMEM);
	return hak_aligned(hak_boot.os_page, hak_round_up(n ? n : 1, hak_boot.os_page), HAK_CALLER);
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
	const char *name = hak_stat_texts;
	hak_stats_snapshot(&s, sizeof s);
	for (size_t i = 0; i < HAK_STAT_COUNT; i++, name = hak_text_at(name, HAK_TEXTS))
		hak_sayf("hakmem: %-24s %14llu %s\n", name,
		         (unsigned long long)((const uint64_t *)(const void *)&s)[i], hak_text_at(name, 1));
}

HAK_EXPORT int malloc_info(int options, FILE *stream)
{
	hak_stats_t s;
	const char *name = hak_stat_texts;
	if (options != 0)
		return errno = EINVAL, -1;
	hak_stats_snapshot(&s, sizeof s);
	fputs("<malloc version=\"hakmem-" HAK_VERSION "\">\n", stream);
	for (size_t i = 0; i < HAK_STAT_COUNT; i++, name = hak_text_at(name, HAK_TEXTS))
		fprintf(stream, "<stat name=\"%s\" unit=\"%s\" value=\"%llu\"/>\n", name, hak_text_at(name, 1),
		        (unsigned long long)((const uint64_t *)(const void *)&s)[i]);
	fputs("</malloc>\n", stream);
	return 0;
}

/* C++.  The names are those of the Itanium ABI; what comes from libstdc++ is weak, so that C programs need none. */
typedef void (*hak_new_handler_t)(void);
extern hak_new_handler_t hak_cxx_get_new_handler(void) __asm__("_ZSt15get_new_handlerv") __attribute__((weak));
extern _Noreturn void hak_cxx_throw_bad_alloc(void) __asm__("_ZSt17__throw_bad_allocv") __attribute__((weak));

/* Out of memory: the program's new_handler may find some.  The forms that may not throw call it too. */
static HAK_COLD void *hak_cxx_new_slow(size_t n, size_t align, bool nothrow, const void *caller)
{
	for (;;) {
		void *p = align ? hak_aligned(align, n, caller) : hak_hot_malloc(n, caller);
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
	void *p = hak_hot_malloc(n, HAK_INLINED);
	return hak_likely(p != NULL) ? p : hak_cxx_new_slow(n, 0, nothrow, HAK_CALLER);
}

HAK_INLINE void *hak_cxx_new_aligned(size_t n, size_t align, bool nothrow, const void *caller)
{
	void *p = hak_aligned(align, n, caller);
	return hak_likely(p != NULL) ? p : hak_cxx_new_slow(n, align, nothrow, caller);
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
	{ return hak_cxx_new_aligned(n, align, false, HAK_CALLER); }
#define HAK_CXX_NEW_ALIGNED_NOTHROW(symbol)                     \
	HAK_EXPORT void *symbol(size_t n, size_t align, const void *tag); \
	HAK_EXPORT void *symbol(size_t n, size_t align, const void *tag) { (void)tag; return hak_cxx_new_aligned(n, align, true, HAK_CALLER); }
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
