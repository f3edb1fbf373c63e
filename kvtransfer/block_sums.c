/* The block sums of kvtransfer/digest.py in one pass over the words. The compiler vectorises; which of the versions runs is chosen
 * when the library is loaded, so that a cache folder that several machines share serves them all.
 *
 * Block i of a call lies in row rows[i], or, where rows is NULL, in row first + i. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* By level, which is chosen by features: a processor's name would stand for that one alone. */
#if defined(__x86_64__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "arch=x86-64-v4")))
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

static int64_t row_of(const int64_t *rows, int64_t first, int64_t i) { return rows == NULL ? first + i : rows[i]; }

void serval_sum_blocks(const uint64_t *words, const int64_t *rows, int64_t first, int64_t count, int64_t block_words,
                       const uint64_t *keys, uint64_t *sums) {
    for (int64_t i = 0; i < count; i++)
        sums[i] = block_sum(words + row_of(rows, first, i) * block_words, keys, block_words);
}

/* Copies blocks and sums the copy of each while it is in the first cache. */
void serval_copy_blocks(const uint64_t *source, const int64_t *source_rows, int64_t source_first, uint64_t *words,
                        const int64_t *rows, int64_t first, int64_t count, int64_t block_words, const uint64_t *keys,
                        uint64_t *sums) {
    for (int64_t i = 0; i < count; i++) {
        uint64_t *copy = words + row_of(rows, first, i) * block_words;
        memcpy(copy, source + row_of(source_rows, source_first, i) * block_words, (size_t)block_words * sizeof *copy);
        /* What is summed must be read from the copy: the source is memory that a peer can still write to. */
        __asm__ volatile("" ::: "memory");
        if (sums != NULL)
            sums[i] = block_sum(copy, keys, block_words);
    }
}
