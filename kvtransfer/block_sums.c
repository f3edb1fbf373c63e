/* The block sums of kvtransfer/digest.py in one pass over the words. The compiler vectorises; which of the versions runs is chosen
 * when the library is loaded, so that a cache folder that several machines share serves them all. */

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "arch=skylake-avx512")))
#else
#define FOR_EACH_PROCESSOR
#endif

FOR_EACH_PROCESSOR
static uint64_t block_sum(const uint64_t *words, const uint64_t *keys, int64_t count) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += keys[i] * (words[i] ^ (words[i] >> 32));
    return sum;
}

/* sums[i] is that of row rows[i], or, where rows is NULL, of row first + i. */
void serval_block_sums(const uint64_t *words, int64_t block_words, const int64_t *rows, int64_t first, int64_t count,
                       const uint64_t *keys, uint64_t *sums) {
    for (int64_t i = 0; i < count; i++) {
        int64_t row = rows == NULL ? first + i : rows[i];
        sums[i] = block_sum(words + row * block_words, keys, block_words);
    }
}
