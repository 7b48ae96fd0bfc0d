/* The histogram: every bucket's bounds, its relative error, quantiles and merging. */
#include <stdio.h>
#include <string.h>

#include "zeno_histogram.h"

#define CHECK(condition)                                              \
    do {                                                              \
        if (!(condition)) {                                           \
            printf("line %d: %s\n", __LINE__, #condition);            \
            return 1;                                                 \
        }                                                             \
    } while (0)

int main(void)
{
    static zh_histogram one, two;

    for (unsigned i = 0; i < ZH_BUCKETS; i++) {
        const uint64_t least = zh_least(i), next = zh_least(i + 1);
        CHECK(least < next);
        CHECK(zh_index(least) == i);
        CHECK(zh_index(next - 1) == i);
        CHECK(least < 512 || next - least <= least / 8);
    }
    CHECK(zh_index(UINT64_MAX) == ZH_BUCKETS - 1);
    CHECK(zh_quantile(&one, 0.5) == 0);

    for (uint64_t ns = 1; ns <= 100000; ns++)
        zh_record(&one, ns * 1000);
    CHECK(one.count == 100000 && one.max_ns == 100000000);
    for (int percent = 1; percent <= 100; percent++) {
        const double exact = percent * 1e6, found = (double)zh_quantile(&one, percent / 100.0);
        CHECK(found > exact * 0.93 && found < exact * 1.07);
    }
    zh_record(&two, UINT64_MAX);
    zh_merge(&two, &one);
    CHECK(two.count == 100001 && two.max_ns == UINT64_MAX);
    CHECK(zh_quantile(&two, 0.5) == zh_quantile(&one, 0.5));
    CHECK(zh_quantile(&two, 1.0) >= zh_least(ZH_BUCKETS - 1));
    return 0;
}
