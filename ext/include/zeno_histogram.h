/* How long calls took: a histogram of fixed size whose relative error is bounded.
 *
 * After the idea of HDR histograms (Gil Tene, hdrhistogram.org): buckets of equal width up to
 * ZH_SUB units, then ZH_SUB buckets for each power of two. A unit is 64 ns, so that a value is told
 * to 64 ns below half a microsecond and to one part in ZH_SUB above it. Values beyond the last bucket,
 * some 19 hours, count there.
 *
 * Header only, C11 and C++17; no allocation, no system call. All zero bytes are an empty histogram.
 * It is not safe for two writers at once; whoever owns it sees to that.
 */
#ifndef ZENO_HISTOGRAM_H
#define ZENO_HISTOGRAM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ZH_UNIT_BITS = 6, /* log2 of a unit in nanoseconds */
    ZH_SUB_BITS = 3,
    ZH_SUB = 1 << ZH_SUB_BITS,
    ZH_BUCKETS = 312
};

typedef struct {
    uint64_t count;
    uint64_t sum_ns;
    uint64_t max_ns;
    uint64_t buckets[ZH_BUCKETS];
} zh_histogram;

/* Return the bucket of a value in nanoseconds. */
static inline unsigned zh_index(uint64_t ns)
{
    const uint64_t units = ns >> ZH_UNIT_BITS;
    unsigned power, index;

    if (units < ZH_SUB)
        return (unsigned)units;
    power = 63u - (unsigned)__builtin_clzll(units);
    index = (power - ZH_SUB_BITS + 1) * ZH_SUB +
            ((unsigned)(units >> (power - ZH_SUB_BITS)) & (ZH_SUB - 1));
    return index < ZH_BUCKETS ? index : ZH_BUCKETS - 1;
}

/* Return the least value of a bucket, in nanoseconds; `index` may be ZH_BUCKETS. */
static inline uint64_t zh_least(unsigned index)
{
    const unsigned octave = index / ZH_SUB;
    const uint64_t within = index % ZH_SUB;

    if (octave == 0)
        return within << ZH_UNIT_BITS;
    return (ZH_SUB + within) << (octave - 1 + ZH_UNIT_BITS);
}

static inline void zh_record(zh_histogram *histogram, uint64_t ns)
{
    histogram->count++;
    histogram->sum_ns += ns;
    if (ns > histogram->max_ns)
        histogram->max_ns = ns;
    histogram->buckets[zh_index(ns)]++;
}

/* Add what `other` has counted. */
static inline void zh_merge(zh_histogram *histogram, const zh_histogram *other)
{
    histogram->count += other->count;
    histogram->sum_ns += other->sum_ns;
    if (other->max_ns > histogram->max_ns)
        histogram->max_ns = other->max_ns;
    for (unsigned i = 0; i < ZH_BUCKETS; i++)
        histogram->buckets[i] += other->buckets[i];
}

/* Return the value, in nanoseconds, below which a part of all lies: 0 < part <= 1; 0 where there is none.
 *
 * It is the middle of its bucket, and not above the largest value that was recorded.
 */
static inline uint64_t zh_quantile(const zh_histogram *histogram, double part)
{
    const double wanted = part * (double)histogram->count;
    uint64_t seen = 0;

    for (unsigned i = 0; i < ZH_BUCKETS; i++) {
        seen += histogram->buckets[i];
        if (seen && (double)seen >= wanted) {
            const uint64_t middle = (zh_least(i) + zh_least(i + 1)) / 2;
            return middle < histogram->max_ns ? middle : histogram->max_ns;
        }
    }
    return histogram->max_ns;
}

#ifdef __cplusplus
}
#endif

#endif
