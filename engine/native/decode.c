/* One decode step of a Llama-family model in bfloat16 on one thread: the next token of each of several sequences, or several
 * consecutive ones where they are guessed. A token is one row of every product.
 *
 * A decode step reads every weight once and computes little with it, so it can be no faster than memory. Everything here serves
 * that: weights lie in the order in which they are read, all rows' activations stay in the first-level caches, attention reads
 * the paged pool where it lies, once for all rows of a sequence, and between two products nothing waits for an interpreter.
 *
 * Needs AVX512-BF16 and AMX-BF16 (library.py asks the CPU first). Every tile is 16 rows of 64 bytes, so that the tile
 * configuration never changes. A row's result never depends on the other rows, not by a bit, but for the KV of those that come
 * before it in its sequence: what rows pad a tile may hold anything.
 * Sums are float32 throughout; rounded to bfloat16 are only the inputs of products and what the KV pool keeps.
 */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;

enum { STORE, ADD };
enum { TILE = 16, PANEL = 32, TILE_VALUES = 512, PREFETCH_BYTES = 8192, AHEAD = 4 * TILE /* tokens */ };

/* The tile registers: sums, left operands (activations), right operands (weights). Names must be literals to the compiler. */
#define SUM0 0
#define SUM1 1
#define LEFT 2
#define RIGHT0 3
#define RIGHT1 4

/* ---- the structures that Python fills; engine/native/decoder.py has the same fields in the same order */

typedef struct {
    const bf16 *weight; /* [outputs / 32][inputs / 32][2][16 pairs of inputs][16 outputs][2]: see pack() in decoder.py */
    const bf16 *bias;   /* [outputs], or NULL */
    int64_t inputs, outputs;
} Linear;

typedef struct {
    Linear qkv, output, gate_up, down;
    const float *input_norm, *mlp_norm;
    const float *query_norm, *key_norm; /* [head_dim], or NULL */
} Layer;

typedef struct {
    int64_t num_layers, hidden, inner, heads, kv_heads, head_dim;
    float norm_epsilon, rope_factor;
    const float *rope_frequencies; /* [head_dim / 2] */
    const bf16 *embedding;         /* [vocabulary, hidden] */
    const Layer *layers;
    const float *norm;
    Linear head;
} Model;

typedef struct {
    int64_t count, sequences; /* count: rows of all sequences */
    const int64_t *rows; /* [sequences + 1]: where each sequence's rows begin; they and their positions are consecutive */
    const int64_t *token_ids, *positions, *slots; /* [count] */
    const int32_t *blocks; /* [sequences, blocks_width]: each sequence's blocks in order */
    int64_t blocks_width, block_size;
    bf16 *pool; /* [layer][slot][K heads, V heads] */
    int64_t layer_values;
    void *workspace; /* serval_workspace_bytes(), aligned to 64 */
    float *logits;   /* [count, vocabulary] */
} Batch;

/* ---- small things */

static inline float to_float(bf16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}

static inline __m512 load_bf16(const bf16 *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)from)), 16));
}

static inline void store_bf16(bf16 *to, __m512 value) { _mm256_storeu_si256((void *)to, (__m256i)_mm512_cvtneps_pbh(value)); }

/* e to the x: 2 to the rounded part of x log2(e) times a polynomial in the rest; relative error below 2e-7.
 * Below e to the -100 it stays there. NaN stays NaN: maxps returns its second operand. */
static inline __m512 exponential(__m512 x) {
    x = _mm512_mul_ps(_mm512_max_ps(_mm512_set1_ps(-100.0f), x), _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole);
    static const float coefficients[] = {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f};
    __m512 result = _mm512_set1_ps(1.5403530e-4f);
    for (int i = 0; i < 6; i++) result = _mm512_fmadd_ps(result, rest, _mm512_set1_ps(coefficients[i]));
    return _mm512_scalef_ps(result, whole);
}

static int64_t padded(int64_t rows) { return (rows + TILE - 1) / TILE * TILE; }

static void configure_tiles(void) {
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE}};
    _tile_loadconfig(&config);
}

/* What was written before is in memory after: the compiler does not know that loading a tile reads memory. */
#define BEFORE_TILES() __asm__ volatile("" ::: "memory")

/* Asks the kernel for the right to use tiles, for the whole process. 0 when it is granted. */
int serval_request_tiles(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

/* ---- products */

/* Finishes a 16 x 16 corner of a product: adds the bias and stores in `to`, or adds to what is there. */
static void put(const float *sums, const Linear *linear, int64_t output, float *to, int64_t row, int64_t rows, int add) {
    __m512 bias = linear->bias ? load_bf16(linear->bias + output) : _mm512_setzero_ps();
    for (int64_t i = 0; i < TILE && row + i < rows; i++) {
        float *place = to + (row + i) * linear->outputs + output;
        __m512 sum = _mm512_add_ps(_mm512_load_ps(sums + i * TILE), bias);
        _mm512_storeu_ps(place, add ? _mm512_add_ps(sum, _mm512_loadu_ps(place)) : sum);
    }
}

/* x [padded(rows), inputs] times the weight, stored in or added to `to` [rows, outputs]: one pass over the weight in memory order.
 * A panel of 32 outputs comes from memory for the first 16 rows, and from the cache for the others. */
static void multiply(const Linear *linear, const bf16 *x, int64_t rows, float *to, int add) {
    int64_t inputs = linear->inputs, stride = inputs * (int64_t)sizeof(bf16);
    float sums[TILE * TILE] __attribute__((aligned(64)));
    BEFORE_TILES();
    for (int64_t output = 0; output < linear->outputs; output += PANEL)
        for (int64_t row = 0; row < rows; row += TILE) {
            const bf16 *left = x + row * inputs, *right = linear->weight + output * inputs;
            _tile_zero(SUM0);
            _tile_zero(SUM1);
            for (int64_t input = 0; input < inputs; input += PANEL, right += 2 * TILE_VALUES) {
                /* The CPU's own prefetcher stops at each page. Past the end this touches nothing: a prefetch cannot fault. */
                for (int line = 0; row == 0 && line < 2 * TILE_VALUES; line += 32)
                    _mm_prefetch((const char *)(right + line) + PREFETCH_BYTES, _MM_HINT_T0);
                _tile_loadd(LEFT, left + input, stride);
                _tile_loadd(RIGHT0, right, 64);
                _tile_dpbf16ps(SUM0, LEFT, RIGHT0);
                _tile_loadd(RIGHT1, right + TILE_VALUES, 64);
                _tile_dpbf16ps(SUM1, LEFT, RIGHT1);
            }
            _tile_stored(SUM0, sums, 64);
            put(sums, linear, output, to, row, rows, add);
            _tile_stored(SUM1, sums, 64);
            put(sums, linear, output + TILE, to, row, rows, add);
        }
}

/* ---- what lies between products */

static float mean_square(const float *x, int64_t width) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i), sum);
    return _mm512_reduce_add_ps(sum) / (float)width;
}

static void norm_rows(const Model *model, const float *weight, const float *x, int64_t rows, bf16 *to) {
    for (int64_t row = 0; row < rows; row++, x += model->hidden, to += model->hidden) {
        __m512 scale = _mm512_set1_ps(1.0f / sqrtf(mean_square(x, model->hidden) + model->norm_epsilon));
        for (int64_t i = 0; i < model->hidden; i += 16)
            store_bf16(to + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), scale), _mm512_loadu_ps(weight + i)));
    }
}

/* One query or key head in place: its normalisation where the model has one, then the rotation. */
static void turn_head(const Model *model, float *head, const float *norm, const float *cosine, const float *sine) {
    int64_t width = model->head_dim, half = width / 2;
    if (norm) {
        float scale = 1.0f / sqrtf(mean_square(head, width) + model->norm_epsilon);
        for (int64_t i = 0; i < width; i++) head[i] *= scale * norm[i];
    }
    for (int64_t i = 0; i < half; i += 16) {
        __m512 low = _mm512_loadu_ps(head + i), high = _mm512_loadu_ps(head + half + i);
        __m512 c = _mm512_loadu_ps(cosine + i), s = _mm512_loadu_ps(sine + i);
        _mm512_storeu_ps(head + i, _mm512_fmsub_ps(low, c, _mm512_mul_ps(high, s)));
        _mm512_storeu_ps(head + half + i, _mm512_fmadd_ps(high, c, _mm512_mul_ps(low, s)));
    }
}

/* silu(gate) * up; the two lie one after the other in each row. */
static void gate_rows(int64_t inner, const float *gate_up, int64_t rows, bf16 *to) {
    for (int64_t row = 0; row < rows; row++, gate_up += 2 * inner, to += inner)
        for (int64_t i = 0; i < inner; i += 16) {
            __m512 gate = _mm512_loadu_ps(gate_up + i), up = _mm512_loadu_ps(gate_up + inner + i);
            __m512 divisor = _mm512_add_ps(_mm512_set1_ps(1.0f), exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate)));
            store_bf16(to + i, _mm512_mul_ps(_mm512_div_ps(gate, divisor), up));
        }
}

/* ---- attention */

/* sums[column][...] = factor[column] * sums + weights[token][column] * values[token], for `columns` and `tokens`.
 * bfloat16 widens to float32 by a shift for even and a mask for odd places, so sums hold 16 even, then 16 odd of each 32. */
static inline __attribute__((always_inline)) void weigh_values(
    int columns, int64_t tokens, const float *weights, const float *factor, const bf16 *values, int64_t stride, float *sums,
    int64_t head_dim) {
    for (int64_t at = 0; at < head_dim; at += 32) {
        __m512 even[columns], odd[columns];
        for (int column = 0; column < columns; column++) {
            even[column] = _mm512_mul_ps(_mm512_set1_ps(factor[column]), _mm512_load_ps(sums + column * head_dim + at));
            odd[column] = _mm512_mul_ps(_mm512_set1_ps(factor[column]), _mm512_load_ps(sums + column * head_dim + at + 16));
        }
        for (int64_t token = 0; token < tokens; token++) {
            __m512i pairs = _mm512_loadu_si512(values + token * stride + at);
            __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
            __m512 high = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
            for (int column = 0; column < columns; column++) {
                __m512 weight = _mm512_set1_ps(weights[token * TILE + column]);
                even[column] = _mm512_fmadd_ps(weight, low, even[column]);
                odd[column] = _mm512_fmadd_ps(weight, high, odd[column]);
            }
        }
        for (int column = 0; column < columns; column++) {
            _mm512_store_ps(sums + column * head_dim + at, even[column]);
            _mm512_store_ps(sums + column * head_dim + at + 16, odd[column]);
        }
    }
}

/* weigh_values for any number of columns, in constant numbers that fit the registers. */
static void weigh_columns(
    int64_t columns, int64_t tokens, const float *weights, const float *factor, const bf16 *values, int64_t stride, float *sums,
    int64_t head_dim) {
    while (columns > 0) {
        int taken = columns >= 4 ? 4 : (int)columns;
        switch (taken) {
        case 4: weigh_values(4, tokens, weights, factor, values, stride, sums, head_dim); break;
        case 3: weigh_values(3, tokens, weights, factor, values, stride, sums, head_dim); break;
        case 2: weigh_values(2, tokens, weights, factor, values, stride, sums, head_dim); break;
        default: weigh_values(1, tokens, weights, factor, values, stride, sums, head_dim); break;
        }
        columns -= taken, weights += taken, factor += taken, sums += taken * head_dim;
    }
}

/* Scratch of one sequence's attention. Queries are the right operand of a tile product, so that 16 tokens' keys can be the left one
 * as they lie in the pool: the scores come out as [token][column], and columns are lanes from there on. A tile's columns are the
 * query heads that share one KV head, of as many rows as fit: a part of the sequence's rows. */
typedef struct {
    bf16 *queries; /* [part][kv_heads][head_dim / 2][16 columns][2] */
    float *sums;   /* [part][kv_heads][16 columns][head_dim] */
    float *maxima, *totals; /* [part][kv_heads][16 columns] */
} Attention;

typedef struct {
    int64_t rows, context; /* how many, and how many tokens the first of them sees; each later one sees one more */
    int64_t group;         /* columns of a row */
} Part;

static int64_t rows_per_part(const Model *model) { return TILE / (model->heads / model->kv_heads); }

/* The columns that see a token which the part's first row would have to see `beyond` tokens more to see. */
static inline __mmask16 columns_that_see(const Part *part, int64_t beyond) {
    int64_t blind = beyond > 0 ? beyond * part->group : 0;
    return blind < TILE ? (__mmask16)(0xffff << blind) : 0;
}

/* Takes 16 consecutive tokens of one KV head, from `first` on, into a part's running softmax. `tile` is the part's and head's. */
static void attend_tile(const Model *model, const Attention *scratch, int64_t tile, const Part *part, int64_t first,
                        const bf16 *keys) {
    int64_t head_dim = model->head_dim, width = 2 * model->kv_heads * head_dim, last = part->context + part->rows - 1 - first;
    int64_t tokens = last < TILE ? last : TILE;
    const bf16 *values = keys + model->kv_heads * head_dim, *queries = scratch->queries + tile * head_dim * TILE;
    float *sums = scratch->sums + tile * TILE * head_dim;
    float scores[TILE * TILE] __attribute__((aligned(64))), factor[TILE] __attribute__((aligned(64)));
    BEFORE_TILES();
    _tile_zero(SUM0);
    for (int64_t at = 0; at < head_dim; at += PANEL) {
        _tile_loadd(LEFT, keys + at, width * sizeof(bf16));
        _tile_loadd(RIGHT0, queries + at * TILE, 64);
        _tile_dpbf16ps(SUM0, LEFT, RIGHT0);
    }
    _tile_stored(SUM0, scores, 64);
    __m512 before = _mm512_load_ps(scratch->maxima + tile * TILE), maximum = before;
    for (int64_t token = 0; token < tokens; token++) {
        __mmask16 sees = columns_that_see(part, first + token + 1 - part->context);
        maximum = _mm512_mask_max_ps(maximum, sees, maximum, _mm512_load_ps(scores + token * TILE));
    }
    __m512 shrink = exponential(_mm512_sub_ps(before, maximum));
    __m512 total = _mm512_mul_ps(shrink, _mm512_load_ps(scratch->totals + tile * TILE));
    for (int64_t token = 0; token < tokens; token++) {
        __mmask16 sees = columns_that_see(part, first + token + 1 - part->context);
        __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(scores + token * TILE), maximum));
        total = _mm512_mask_add_ps(total, sees, total, weight);
        _mm512_store_ps(scores + token * TILE, weight);
    }
    _mm512_store_ps(factor, shrink);
    _mm512_store_ps(scratch->maxima + tile * TILE, maximum);
    _mm512_store_ps(scratch->totals + tile * TILE, total);
    if (part->context - first >= TILE)
        weigh_columns(part->rows * part->group, TILE, scores, factor, values, width, sums, head_dim);
    else /* here the rows see different numbers of tokens, and none weighs what it does not see, not even with 0 */
        for (int64_t row = 0, column = 0; row < part->rows; row++, column += part->group) {
            int64_t seen = part->context + row - first;
            seen = seen < 0 ? 0 : seen < TILE ? seen : TILE;
            weigh_columns(part->group, seen, scores + column, factor + column, values, width, sums + column * head_dim, head_dim);
        }
}

/* Puts a row's rotated queries [heads, head_dim] into its columns, and clears what these are to sum up. */
static void begin_row(const Model *model, const Attention *scratch, int64_t row, const float *query) {
    int64_t head_dim = model->head_dim, group = model->heads / model->kv_heads, per_part = rows_per_part(model);
    float scale = 1.0f / sqrtf((float)head_dim);
    for (int64_t head = 0; head < model->heads; head++, query += head_dim) {
        int64_t tile = row / per_part * model->kv_heads + head / group, column = row % per_part * group + head % group;
        uint32_t *pairs = (uint32_t *)scratch->queries + tile * head_dim / 2 * TILE + column;
        for (int64_t pair = 0; pair < head_dim / 2; pair++) {
            /* The scale goes in here: exact where it is a power of two, else one rounding of what is rounded anyway. */
            __m128 both = _mm_setr_ps(query[2 * pair] * scale, query[2 * pair + 1] * scale, 0, 0);
            __m128bh rounded = _mm_cvtneps_pbh(both);
            memcpy(pairs + pair * TILE, &rounded, sizeof *pairs);
        }
        memset(scratch->sums + (tile * TILE + column) * head_dim, 0, head_dim * sizeof(float));
        scratch->totals[tile * TILE + column] = 0.0f;
        scratch->maxima[tile * TILE + column] = -1e30f;
    }
}

/* A row's weighted means of values, [heads, head_dim]. */
static void finish_row(const Model *model, const Attention *scratch, int64_t row, bf16 *to) {
    int64_t head_dim = model->head_dim, group = model->heads / model->kv_heads, per_part = rows_per_part(model);
    for (int64_t head = 0; head < model->heads; head++, to += head_dim) {
        int64_t column = (row / per_part * model->kv_heads + head / group) * TILE + row % per_part * group + head % group;
        __m512 share = _mm512_set1_ps(1.0f / scratch->totals[column]);
        const float *sums = scratch->sums + column * head_dim;
        for (int64_t at = 0; at < head_dim; at += 32) {
            __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(share, _mm512_load_ps(sums + at))));
            __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(share, _mm512_load_ps(sums + at + 16))));
            _mm512_storeu_si512(to + at, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
    }
}

/* Where the KV of a sequence's 16 tokens from `token` on begins. */
static const bf16 *entries_at(const Batch *batch, int64_t sequence, int64_t token, const bf16 *pool, int64_t entry) {
    int64_t block = batch->blocks[sequence * batch->blocks_width + token / batch->block_size];
    return pool + (block * batch->block_size + token % batch->block_size) * entry;
}

/* One sequence's attention over its blocks, each read once and whole for all its rows. `qkv` are the first row's, rotated and
 * followed by the next row's `stride` values later; `to` [rows, heads, head_dim]. The rows' own KV is in the pool already. */
static void attend(const Model *model, const Batch *batch, const Attention *scratch, const bf16 *pool, int64_t sequence,
                   const float *qkv, int64_t stride, bf16 *to) {
    int64_t head_dim = model->head_dim, kv_heads = model->kv_heads, entry = 2 * kv_heads * head_dim;
    int64_t per_part = rows_per_part(model), share = TILE * entry / kv_heads;
    int64_t rows = batch->rows[sequence + 1] - batch->rows[sequence], context = batch->positions[batch->rows[sequence]] + 1;
    int64_t end = context + rows - 1;
    for (int64_t row = 0; row < rows; row++) begin_row(model, scratch, row, qkv + row * stride);
    for (int64_t token = 0; token < end; token += TILE) {
        const bf16 *keys = entries_at(batch, sequence, token, pool, entry);
        const bf16 *ahead = entries_at(batch, sequence, token + AHEAD < end ? token + AHEAD : token, pool, entry);
        for (int64_t head = 0; head < kv_heads; head++) {
            /* Blocks lie anywhere, and a head's keys are far apart: the CPU's own prefetcher makes nothing of them. */
            for (int64_t at = 0; at < share; at += 32) _mm_prefetch((const char *)(ahead + head * share + at), _MM_HINT_T1);
            for (int64_t row = 0; row < rows; row += per_part) {
                Part part = {rows - row < per_part ? rows - row : per_part, context + row, model->heads / kv_heads};
                if (token < part.context + part.rows - 1)
                    attend_tile(model, scratch, row / per_part * kv_heads + head, &part, token, keys + head * head_dim);
            }
        }
    }
    for (int64_t row = 0; row < rows; row++) finish_row(model, scratch, row, to + row * model->heads * head_dim);
}

/* ---- the step */

typedef struct {
    float *residual, *wide, *cosine, *sine;
    bf16 *narrow;
    Attention attention;
    int64_t bytes;
} Workspace;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Sets `size` bytes apart, aligned to 64; where they begin. */
static int64_t take(int64_t *bytes, int64_t size) {
    int64_t start = *bytes;
    *bytes += (size + 63) / 64 * 64;
    return start;
}

/* Lays the workspace out in `memory`; with NULL only its size counts. */
static Workspace lay_out(const Model *model, int64_t count, char *memory) {
    int64_t rows = padded(count), query = model->heads * model->head_dim, entry = 2 * model->kv_heads * model->head_dim;
    int64_t bytes = 0;
    Workspace space;
#define TAKE(type, values) (type *)(memory + take(&bytes, (values) * (int64_t)sizeof(type)))
    space.residual = TAKE(float, rows * model->hidden);
    space.wide = TAKE(float, rows * larger(query + entry, 2 * model->inner));
    space.cosine = TAKE(float, rows * model->head_dim / 2);
    space.sine = TAKE(float, rows * model->head_dim / 2);
    space.narrow = TAKE(bf16, rows * larger(larger(model->hidden, query), model->inner));
    /* One sequence may have all rows; a part has at least one. */
    space.attention.queries = TAKE(bf16, count * model->kv_heads * model->head_dim * TILE);
    space.attention.sums = TAKE(float, count * model->kv_heads * TILE * model->head_dim);
    space.attention.maxima = TAKE(float, count * model->kv_heads * TILE);
    space.attention.totals = TAKE(float, count * model->kv_heads * TILE);
#undef TAKE
    space.bytes = bytes;
    return space;
}

int64_t serval_workspace_bytes(const Model *model, int64_t count) { return lay_out(model, count, NULL).bytes; }

static void begin(const Model *model, const Batch *batch, Workspace *space) {
    int64_t half = model->head_dim / 2;
    for (int64_t row = 0; row < batch->count; row++) {
        const bf16 *embedding = model->embedding + batch->token_ids[row] * model->hidden;
        for (int64_t i = 0; i < model->hidden; i++) space->residual[row * model->hidden + i] = to_float(embedding[i]);
        for (int64_t i = 0; i < half; i++) {
            float angle = (float)batch->positions[row] * model->rope_frequencies[i];
            space->cosine[row * half + i] = cosf(angle) * model->rope_factor;
            space->sine[row * half + i] = sinf(angle) * model->rope_factor;
        }
    }
}

/* Turns queries and keys, stores K and V in the pool, and attends; `space->wide` holds the product qkv. */
static void mix_tokens(const Model *model, const Layer *layer, const Batch *batch, Workspace *space, bf16 *pool) {
    int64_t head_dim = model->head_dim, query = model->heads * head_dim, entry = 2 * model->kv_heads * head_dim;
    float *qkv = space->wide;
    for (int64_t row = 0; row < batch->count; row++, qkv += query + entry) {
        for (int64_t head = 0; head < model->heads + model->kv_heads; head++)
            turn_head(model, qkv + head * head_dim, head < model->heads ? layer->query_norm : layer->key_norm,
                      space->cosine + row * head_dim / 2, space->sine + row * head_dim / 2);
        bf16 *place = pool + batch->slots[row] * entry;
        for (int64_t i = 0; i < entry; i += 16) store_bf16(place + i, _mm512_loadu_ps(qkv + query + i));
    }
    for (int64_t sequence = 0; sequence < batch->sequences; sequence++) {
        int64_t row = batch->rows[sequence];
        attend(model, batch, &space->attention, pool, sequence, space->wide + row * (query + entry), query + entry,
               space->narrow + row * query);
    }
}

void serval_decode(const Model *model, const Batch *batch) {
    Workspace space = lay_out(model, batch->count, batch->workspace);
    /* Numbers near 0 count as 0, read or written (FTZ and DAZ): what is hardly attended to weighs so little, and each operation on
     * such a number costs more than a hundred others. */
    unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8040);
    configure_tiles();
    begin(model, batch, &space);
    for (int64_t index = 0; index < model->num_layers; index++) {
        const Layer *layer = model->layers + index;
        norm_rows(model, layer->input_norm, space.residual, batch->count, space.narrow);
        multiply(&layer->qkv, space.narrow, batch->count, space.wide, STORE);
        mix_tokens(model, layer, batch, &space, batch->pool + index * batch->layer_values);
        multiply(&layer->output, space.narrow, batch->count, space.residual, ADD);
        norm_rows(model, layer->mlp_norm, space.residual, batch->count, space.narrow);
        multiply(&layer->gate_up, space.narrow, batch->count, space.wide, STORE);
        gate_rows(model->inner, space.wide, batch->count, space.narrow);
        multiply(&layer->down, space.narrow, batch->count, space.residual, ADD);
    }
    norm_rows(model, model->norm, space.residual, batch->count, space.narrow);
    multiply(&model->head, space.narrow, batch->count, batch->logits, STORE);
    _tile_release();
    _mm_setcsr(control);
}
