// The sweep of ulna/kernels/sweep/dispatch.py by matrix registers (AMX): products of bfloat16 operands, everything else in float32,
// but for the gates that are kept for the backward pass.
//
// As sweep.cpp, but in a layout that matrices read as it lies. A line's positions stand in a row, with zeros between the
// rows of an image and between images, so that every neighbour is one offset and every 32 positions are one block of a
// product, margins included; what a margin yields is dropped. Channels are filled up to whole blocks of 32 by zeros.
// A product takes 32 positions x 32 channels at once: four matrices of sums, two of either operand.
//
// For the gradients of the weights, which sum over positions, maps are turned once a line (channel by channel, positions
// along the row): a neighbour is then an offset along the row.
// Threads share blocks of positions, and blocks of weights; they meet once a line. No sum depends on how many they are.

#include <cstdint>
#if defined(__AVX512BF16__) && defined(__AMX_BF16__) && defined(__linux__)
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <immintrin.h>
#include <new>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

using Half = uint16_t;               // a bfloat16
constexpr int64_t SIDE = 16;         // rows of a matrix register, and numbers of float32 in a row
constexpr int64_t BLOCK = 2 * SIDE;  // positions, or channels, of a product; also the numbers of bfloat16 in a row
constexpr int64_t SQUARE = BLOCK * BLOCK;
constexpr int64_t TOGETHER = 512;  // positions that the gradients of the weights are summed over in one go, or more

inline __mmask16 first(int64_t count) { return count >= SIDE ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }
inline __m512 load(const float* p, __mmask16 valid) { return _mm512_maskz_loadu_ps(valid, p); }
inline void store(float* p, __mmask16 valid, __m512 v) { _mm512_mask_storeu_ps(p, valid, v); }
inline __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline void store(Half* p, __m256i halves) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves); }
// words of two numbers each, the first in the lower half
inline __m512i weave(__m256i a, __m256i b) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(a), _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
}

// e^x = 2^k * e^r, |r| <= ln 2 / 2, the second factor by five terms of its power series: to 3e-6
inline __m512 exponential(__m512 x) {
    const __m512 limit = _mm512_set1_ps(80.0f);  // a NaN as the second operand stays one
    x = _mm512_max_ps(_mm512_set1_ps(-80.0f), _mm512_min_ps(limit, x));
    const __m512 k = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    const __m512 r = _mm512_fnmadd_ps(k, _mm512_set1_ps(0.69314718f), x);
    __m512 sum = _mm512_set1_ps(1 / 120.0f);
    for (const float term : {1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f}) sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
    return _mm512_scalef_ps(sum, k);
}
inline __m512 reciprocal(__m512 v) {  // one step of Newton's
    const __m512 guess = _mm512_rcp14_ps(v);
    return _mm512_mul_ps(guess, _mm512_fnmadd_ps(v, guess, _mm512_set1_ps(2.0f)));
}
inline __m512 one_plus(__m512 v) { return _mm512_add_ps(_mm512_set1_ps(1.0f), v); }
inline __m512 one_minus(__m512 v) { return _mm512_sub_ps(_mm512_set1_ps(1.0f), v); }
inline __m512 sigmoid(__m512 x) {
    return reciprocal(one_plus(exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}
inline __m512 hyperbolic(__m512 x) {
    return _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), reciprocal(one_plus(exponential(_mm512_add_ps(x, x)))),
                            _mm512_set1_ps(1.0f));
}

// 16 x 16 words
inline void transpose(__m512i (&r)[SIDE]) {
    __m512i t[SIDE];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd), d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(a, b, 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
        t[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
    std::copy(t, t + SIDE, r);
}

template <typename T>
struct Buffer {
    T* data = nullptr;
    explicit Buffer(int64_t count, bool zeros = true) {
        void* p = nullptr;
        if (posix_memalign(&p, 64, sizeof(T) * count)) throw std::bad_alloc();
        data = static_cast<T*>(p);
        if (zeros) std::memset(data, 0, sizeof(T) * count);
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    T& operator[](int64_t i) { return data[i]; }
};

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Large pages for a result that is written here first: a tenth of a sweep's time went into faults of small ones
inline void in_large_pages(void* p, int64_t bytes) {
    constexpr uintptr_t PAGE = 2 << 20;
    const uintptr_t start = (reinterpret_cast<uintptr_t>(p) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / PAGE * PAGE;
    if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
}

// A thread's matrix registers, all whole, from here to the end of the scope; what the library that torch calls had set is
// put back. Registers 0 to 3 hold sums, 4 and 5 the left operand, 6 and 7 the right one.
// The compiler does not know what they read and write in memory: `in_order` keeps stores before, and loads after them. Its
// own intrinsics for the configuration tell it of 8 of their 64 bytes.
inline void in_order() { asm volatile("" ::: "memory"); }
struct Matrices {
    struct Configuration {
        alignas(64) uint8_t bytes[64];
    };
    Configuration before;
    Matrices() {
        asm volatile("sttilecfg %0" : "=m"(before));
        Configuration now = {{1}};
        for (int i = 0; i < 8; ++i) {
            now.bytes[16 + 2 * i] = 64;  // bytes of a row
            now.bytes[48 + i] = SIDE;    // rows
        }
        asm volatile("ldtilecfg %0" ::"m"(now) : "memory");
    }
    ~Matrices() {
        if (before.bytes[0])
            asm volatile("ldtilecfg %0" ::"m"(before) : "memory");
        else
            _tile_release();
    }
};
inline void clear_sums() {
    in_order();
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}
inline void load_sums(const float* from) {
    in_order();
    _tile_loadd(0, from, BLOCK * 4);
    _tile_loadd(1, from + SIDE, BLOCK * 4);
    _tile_loadd(2, from + SIDE * BLOCK, BLOCK * 4);
    _tile_loadd(3, from + SIDE * BLOCK + SIDE, BLOCK * 4);
}
inline void store_sums(float* to) {
    _tile_stored(0, to, BLOCK * 4);
    _tile_stored(1, to + SIDE, BLOCK * 4);
    _tile_stored(2, to + SIDE * BLOCK, BLOCK * 4);
    _tile_stored(3, to + SIDE * BLOCK + SIDE, BLOCK * 4);
    in_order();
}
// sums (32, 32) += a (32 rows, `width` apart) * b over `count` blocks; those of b, two matrices each, are `next` apart
inline void add_products(const Half* a, int64_t width, const Half* b, int64_t next, int64_t count) {
    for (int64_t k = 0; k < count; ++k, a += BLOCK, b += next) {
        _tile_loadd(4, a, width * 2);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + SQUARE / 2, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a + SIDE * width, width * 2);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

// The threads at work, which may be fewer than were asked for, and this one among them
struct Team {
    int size = 1, thread = 0;
    Team() {
#ifdef _OPENMP
        size = omp_get_num_threads();
        thread = omp_get_thread_num();
#endif
    }
    void share(int64_t count, int64_t* first, int64_t* last) const {
        *first = count * thread / size;
        *last = count * (thread + 1) / size;
    }
};
inline void meet() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

// What both passes share: the geometry of lines
struct Lines {
    int64_t N, L, T1, T2, C, K, sn, st, sy, sx, start;
    const int64_t *dy, *dx;
    int64_t CB, CW;                   // blocks of channels, and channels in whole blocks
    int64_t blocks, positions, guard;  // of a line with its margins; guard: zeros on either side of it
    int threads = 1;
    std::vector<int64_t> place;  // of every position: in the map, or -1 in a margin

    explicit Lines(const int64_t* s)
        : N(s[0]), L(s[1]), T1(s[2]), T2(s[3]), C(s[4]), K(s[5]), sn(s[6]), st(s[7]), sy(s[8]), sx(s[9]), start(s[10]),
          dy(s + 12), dx(s + 12 + s[5]), CB(ceiling(s[4], BLOCK)), CW(CB * BLOCK) {
        const bool above = std::any_of(dy, dy + K, [](int64_t step) { return step != 0; });
        const int64_t row = T2 + 1, image = (T1 + above) * row, lead = above ? row + 1 : 1;
        blocks = ceiling(lead + N * image, BLOCK);
        positions = blocks * BLOCK;
        guard = ceiling(row + 1, BLOCK) * BLOCK;
        place.assign(positions, -1);
        for (int64_t n = 0; n < N; ++n)
            for (int64_t y = 0; y < T1; ++y)
                for (int64_t x = 0; x < T2; ++x) place[lead + n * image + y * row + x] = start + n * sn + y * sy + x * sx;
#ifdef _OPENMP
        threads = static_cast<int>(std::min(s[11], blocks));
#endif
    }
    int64_t size() const { return N * L * T1 * T2 * C; }
    int64_t step(int64_t j) const { return dy[j] * (T2 + 1) + dx[j]; }  // to neighbour j, in positions
    __mmask16 valid(int64_t channel) const { return first(C - channel); }  // of the 16 channels from one on
};

// A block of a right operand from w^T: its word i of column c is w[c][2i], w[c][2i + 1]; zeros where w ends
void pack_transposed(const float* w, int64_t width, int64_t rows, int64_t columns, Half* to) {
    for (int64_t half = 0; half < 2; ++half, to += SQUARE / 2) {
        __m512i words[SIDE];
        for (int64_t c = 0; c < SIDE; ++c) {
            const int64_t row = half * SIDE + c;
            const float* from = w + row * width;
            words[c] = row < rows ? (__m512i)_mm512_cvtne2ps_pbh(load(from + SIDE, first(columns - SIDE)),
                                                                 load(from, first(columns)))
                                  : _mm512_setzero_si512();
        }
        transpose(words);
        for (int64_t i = 0; i < SIDE; ++i) _mm512_store_si512(to + i * BLOCK, words[i]);
    }
}
// The same from w itself: its word i of column c is w[2i][c], w[2i + 1][c]
void pack(const float* w, int64_t width, int64_t rows, int64_t columns, Half* to) {
    for (int64_t half = 0; half < 2; ++half, to += SQUARE / 2) {
        const __mmask16 valid = first(columns - half * SIDE);
        const float* from = w + half * SIDE;
        for (int64_t i = 0; i < SIDE; ++i) {
            const __m512 a = load(from + 2 * i * width, 2 * i < rows ? valid : 0);
            const __m512 b = load(from + (2 * i + 1) * width, 2 * i + 1 < rows ? valid : 0);
            _mm512_store_si512(to + i * BLOCK, weave(narrow(a), narrow(b)));
        }
    }
}

// Gates that the backward pass reads: for every 16 channels of a position r, z, n and the hidden share of n, in float16,
// whose numbers of this size are finer than bfloat16's: 1 - n * n is off by 0.0005 at most. The last stays within its range.
struct Gate {
    uint16_t bits;
};
inline void keep(Gate* to, __mmask16 valid, __m512 v) {
    constexpr float largest = 65504.0f;  // a NaN as the second operand stays one
    v = _mm512_max_ps(_mm512_set1_ps(-largest), _mm512_min_ps(_mm512_set1_ps(largest), v));
    _mm256_mask_storeu_epi16(to, valid, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline __m512 recall(const Gate* from, __mmask16 valid) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(valid, from));
}

void forward(const float* x, const float* wi, const float* wh, const float* bi, const float* bh, float* h, Gate* gates,
             const int64_t* shape) {
    const Lines l(shape);
    const int64_t C = l.C, CB = l.CB, CW = l.CW, KC = l.K * C, depth = (l.K + 1) * CB;  // blocks that a gate sums over
    Buffer<Half> weights(3 * CB * depth * SQUARE, false);
    Buffer<Half> line0((l.positions + 2 * l.guard) * CW), line1((l.positions + 2 * l.guard) * CW);
    Buffer<Half> owns(l.threads * BLOCK * CW);
    Buffer<float> biases(4 * CW), outs(l.threads * 4 * SQUARE, false);
    for (int64_t c = 0; c < C; ++c) {
        biases[c] = bi[c] + bh[c];
        biases[CW + c] = bi[C + c] + bh[C + c];
        biases[2 * CW + c] = bi[2 * C + c];
        biases[3 * CW + c] = bh[2 * C + c];
    }
    in_large_pages(h, l.size() * sizeof(float));
    if (gates) in_large_pages(gates, l.size() * 4 * sizeof(Gate));
    struct Part {
        int64_t step, blocks;
    };
    std::vector<Part> parts;  // neighbours that lie side by side are read in one go
    for (int64_t j = 0; j < l.K; ++j) {
        if (j && l.step(j) == l.step(j - 1) + 1)
            parts.back().blocks += CB;
        else
            parts.push_back({l.step(j), CB});
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(l.threads)
#endif
    {
        const Team team;
        const Matrices matrices;
        int64_t from, to;
        team.share(3 * CB, &from, &to);
        for (int64_t i = from; i < to; ++i) {
            const int64_t row = i % 3 * C + i / 3 * BLOCK, rows = C - i / 3 * BLOCK;
            for (int64_t k = 0; k < depth; ++k) {
                const int64_t j = k / CB, c = k % CB * BLOCK;
                Half* panel = &weights[(i * depth + k) * SQUARE];
                if (j < l.K)
                    pack_transposed(wi + row * KC + j * C + c, KC, rows, C - c, panel);
                else
                    pack_transposed(wh + row * C + c, C, rows, C - c, panel);
            }
        }
        team.share(l.blocks, &from, &to);
        from *= BLOCK, to *= BLOCK;
        float* out = &outs[team.thread * 4 * SQUARE];
        Half* own = &owns[team.thread * BLOCK * CW];
        for (int64_t p = from; p < to; ++p) {
            const int64_t place = l.place[p];
            if (place < 0) continue;
            std::memcpy(h + place, x + place, sizeof(float) * C);
            if (gates) std::memset(static_cast<void*>(gates + place * 4), 0, sizeof(Gate) * C * 4);
            for (int64_t c = 0; c < CW; c += SIDE)
                store(&line0[(l.guard + p) * CW + c], narrow(load(x + place + c, l.valid(c))));
        }
        for (int64_t t = 1; t < l.L; ++t) {
            meet();
            const Half* before = (t % 2 ? line0.data : line1.data) + l.guard * CW;
            Half* now = (t % 2 ? line1.data : line0.data) + l.guard * CW;
            for (int64_t block = from; block < to; block += BLOCK) {
                for (int64_t i = 0; i < BLOCK; ++i) {
                    const int64_t place = l.place[block + i];
                    for (int64_t c = 0; c < CW; c += SIDE)
                        store(own + i * CW + c, narrow(load(x + place + t * l.st + c, place < 0 ? 0 : l.valid(c))));
                }
                const Half* weight = weights.data;
                for (int64_t n = 0; n < CB; ++n) {
                    for (int64_t gate = 0; gate < 3; ++gate) {
                        clear_sums();
                        for (const Part& part : parts) {
                            add_products(before + (block + part.step) * CW, CW, weight, SQUARE, part.blocks);
                            weight += part.blocks * SQUARE;
                        }
                        if (gate == 2) {  // n keeps the position's share apart, for r to weigh
                            store_sums(out + 2 * SQUARE);
                            clear_sums();
                        }
                        add_products(own, CW, weight, SQUARE, CB);
                        weight += CB * SQUARE;
                        store_sums(out + (gate < 2 ? gate : 3) * SQUARE);
                    }
                    for (int64_t c = n * BLOCK; c < (n + 1) * BLOCK && c < C; c += SIDE) {
                        const __mmask16 valid = l.valid(c);
                        const int64_t run = std::min(SIDE, C - c);
                        __m512 bias[4];
                        for (int k = 0; k < 4; ++k) bias[k] = _mm512_loadu_ps(&biases[k * CW + c]);
                        for (int64_t i = 0; i < BLOCK; ++i) {
                            if (l.place[block + i] < 0) continue;
                            const int64_t place = l.place[block + i] + t * l.st;
                            const float* sums = out + i * BLOCK + c % BLOCK;
                            __m512 sum[4];
                            for (int k = 0; k < 4; ++k) sum[k] = _mm512_add_ps(_mm512_load_ps(sums + k * SQUARE), bias[k]);
                            const __m512 r = sigmoid(sum[0]), z = sigmoid(sum[1]);
                            const __m512 tilt = hyperbolic(_mm512_fmadd_ps(r, sum[3], sum[2]));
                            const __m512 s = load(x + place + c, valid);
                            const __m512 swept = _mm512_fmadd_ps(z, _mm512_sub_ps(s, tilt), tilt);
                            store(h + place + c, valid, swept);
                            store(now + (block + i) * CW + c, narrow(_mm512_maskz_mov_ps(valid, swept)));
                            if (!gates) continue;
                            Gate* kept = gates + (place + c) * 4;
                            keep(kept, valid, r);
                            keep(kept + run, valid, z);
                            keep(kept + 2 * run, valid, tilt);
                            keep(kept + 3 * run, valid, sum[3]);
                        }
                    }
                }
            }
        }
    }
}

void backward(const float* grad, const float* x, const float* h, const Gate* gates, const float* wi, const float* wh,
              float* dx, float* dwi, float* dwh, float* dbi, float* dbh, const int64_t* shape) {
    const Lines l(shape);
    const int64_t C = l.C, CB = l.CB, CW = l.CW, KC = l.K * C, SW = 4 * CW;  // SW: a position's slopes dr, dz, dn, dn * r
    in_large_pages(dx, l.size() * sizeof(float));
    Buffer<Half> weights(CB * (l.K + 1) * 3 * CB * SQUARE, false);
    Buffer<float> carry(l.positions * CW), outs(l.threads * 2 * SQUARE, false), bias_sums(l.blocks * 4 * CW);
    // the slopes of one line, double so that lines need one meeting
    Buffer<Half> slopes0((l.positions + 2 * l.guard) * SW), slopes1((l.positions + 2 * l.guard) * SW);
    // of some lines together, for the gradients of the weights: slopes in pairs of positions, and maps turned
    const int64_t lines = std::min(ceiling(TOGETHER, l.positions), l.L);
    const int64_t panel = 4 * CB * SQUARE;  // slopes of a block of positions
    const int64_t segment = l.positions + 2 * l.guard, width = lines * segment + (lines * segment % 512 ? 0 : BLOCK);
    const int64_t paired_size = lines * l.blocks * panel, turned_size = CW * width;
    Buffer<Half> paired(2 * paired_size), turned_h(2 * turned_size), turned_x(2 * turned_size);
    const int64_t squares = 3 * CB * (l.K + 1) * CB;  // gate, its channels; neighbour (the last: the position), its channels
    Buffer<float> sums(squares * SQUARE);
#ifdef _OPENMP
#pragma omp parallel num_threads(l.threads)
#endif
    {
        const Team team;
        const Matrices matrices;
        int64_t from, to, square_from, square_to;
        team.share(squares, &square_from, &square_to);
        team.share(CB * (l.K + 1), &from, &to);
        for (int64_t i = from; i < to; ++i) {
            const int64_t c = i / (l.K + 1) * BLOCK, j = i % (l.K + 1);
            for (int64_t k = 0; k < 3 * CB; ++k) {
                const int64_t row = k / CB * C + k % CB * BLOCK, rows = C - k % CB * BLOCK;
                Half* to_ = &weights[(i * 3 * CB + k) * SQUARE];
                if (j < l.K)
                    pack(wi + row * KC + j * C + c, KC, rows, C - c, to_);
                else
                    pack(wh + row * C + c, C, rows, C - c, to_);
            }
        }
        team.share(l.blocks, &from, &to);
        from *= BLOCK, to *= BLOCK;
        float *back = &outs[team.thread * 2 * SQUARE], *side = back + SQUARE;
        int64_t slot = 0, batch = 0;
        for (int64_t t = l.L - 1; t > 0; --t) {
            Half* slopes = (t % 2 ? slopes1.data : slopes0.data) + l.guard * SW;
            Half* pairs = paired.data + batch % 2 * paired_size;
            Half* x_rows = turned_x.data + batch % 2 * turned_size + slot * segment + l.guard;
            Half* h_rows = turned_h.data + batch % 2 * turned_size + slot * segment + l.guard;
            for (int64_t block = from; block < to; block += BLOCK) {
                const int64_t following = block + BLOCK < to ? block + BLOCK : block;
                for (int64_t c = 0; c < C; c += SIDE) {
                    const __mmask16 valid = l.valid(c);
                    const int64_t run = std::min(SIDE, C - c);
                    __m512 totals[4] = {};
                    __m512i woven_x[SIDE], woven_h[SIDE];
                    for (int64_t i = 0; i < SIDE; ++i) {
                        __m256i narrow_x[2] = {}, narrow_h[2] = {}, d[4][2] = {};
                        for (int64_t side_ = 0; side_ < 2; ++side_) {
                            const int64_t p = block + 2 * i + side_;
                            const int64_t soon = l.place[following + 2 * i + side_];
                            if (soon >= 0) {  // nobody else would fetch these in time
                                const int64_t at = soon + t * l.st;
                                __builtin_prefetch(gates + (at + c) * 4);
                                __builtin_prefetch(gates + (at + c) * 4 + BLOCK);
                                __builtin_prefetch(x + at + c);
                                __builtin_prefetch(grad + at + c);
                                __builtin_prefetch(h + at - l.st + c);
                            }
                            if (l.place[p] < 0) continue;
                            const int64_t place = l.place[p] + t * l.st;
                            const Gate* kept = gates + (place + c) * 4;
                            const __m512 r = recall(kept, valid), z = recall(kept + run, valid);
                            const __m512 n = recall(kept + 2 * run, valid), hidden = recall(kept + 3 * run, valid);
                            const __m512 s = load(x + place + c, valid);
                            const __m512 g = _mm512_add_ps(load(grad + place + c, valid), _mm512_load_ps(&carry[p * CW + c]));
                            const __m512 gz = _mm512_mul_ps(g, z);
                            const __m512 dn = _mm512_mul_ps(_mm512_sub_ps(g, gz), one_minus(_mm512_mul_ps(n, n)));
                            const __m512 dnr = _mm512_mul_ps(dn, r);
                            const __m512 slope[4] = {
                                _mm512_mul_ps(_mm512_mul_ps(dnr, hidden), one_minus(r)),
                                _mm512_mul_ps(_mm512_mul_ps(gz, _mm512_sub_ps(s, n)), one_minus(z)),
                                dn,
                                dnr,
                            };
                            store(dx + place + c, valid, gz);
                            for (int k = 0; k < 4; ++k) {
                                d[k][side_] = narrow(slope[k]);
                                store(slopes + p * SW + k * CW + c, d[k][side_]);
                                totals[k] = _mm512_add_ps(totals[k], slope[k]);
                            }
                            narrow_x[side_] = narrow(s);
                            narrow_h[side_] = narrow(load(h + place - l.st + c, valid));
                        }
                        Half* pair = pairs + (slot * l.blocks + block / BLOCK) * panel + c / SIDE * (SQUARE / 2) + i * BLOCK;
                        for (int k = 0; k < 4; ++k) _mm512_store_si512(pair + k * CB * SQUARE, weave(d[k][0], d[k][1]));
                        woven_x[i] = weave(narrow_x[0], narrow_x[1]);
                        woven_h[i] = weave(narrow_h[0], narrow_h[1]);
                    }
                    float* total = &bias_sums[block / BLOCK * 4 * CW + c];
                    for (int k = 0; k < 4; ++k)
                        _mm512_store_ps(total + k * CW, _mm512_add_ps(_mm512_load_ps(total + k * CW), totals[k]));
                    transpose(woven_x);
                    transpose(woven_h);
                    for (int64_t i = 0; i < SIDE; ++i) {
                        _mm512_store_si512(x_rows + (c + i) * width + block, woven_x[i]);
                        _mm512_store_si512(h_rows + (c + i) * width + block, woven_h[i]);
                    }
                }
            }
            meet();
            for (int64_t block = from; block < to; block += BLOCK) {
                const Half* weight = weights.data;
                for (int64_t n = 0; n < CB; ++n) {
                    clear_sums();
                    for (int64_t j = 0; j < l.K; ++j, weight += 3 * CB * SQUARE)
                        add_products(slopes + (block - l.step(j)) * SW, SW, weight, SQUARE, 3 * CB);
                    store_sums(back);
                    clear_sums();
                    add_products(slopes + block * SW, SW, weight, SQUARE, 2 * CB);
                    add_products(slopes + block * SW + 3 * CW, SW, weight + 2 * CB * SQUARE, SQUARE, CB);
                    weight += 3 * CB * SQUARE;
                    store_sums(side);
                    for (int64_t i = 0; i < BLOCK; ++i) {
                        if (l.place[block + i] < 0) continue;
                        for (int64_t c = n * BLOCK; c < (n + 1) * BLOCK; c += SIDE) {
                            const int64_t at = i * BLOCK + c % BLOCK;
                            float* down = dx + l.place[block + i] + t * l.st + c;
                            _mm512_store_ps(&carry[(block + i) * CW + c], _mm512_load_ps(back + at));
                            store(down, l.valid(c), _mm512_add_ps(load(down, l.valid(c)), _mm512_load_ps(side + at)));
                        }
                    }
                }
            }
            if (++slot < lines && t > 1) continue;
            for (int64_t q = square_from; q < square_to; ++q) {
                const int64_t row = q % CB * BLOCK, j = q / CB % (l.K + 1), column = q / CB / (l.K + 1);  // gate and channels
                const bool own = j == l.K;
                const int64_t gate = own && column >= 2 * CB ? column + CB : column;  // dn * r for the position itself
                const Half* a = (own ? turned_x : turned_h).data + batch % 2 * turned_size + row * width + l.guard;
                load_sums(&sums[q * SQUARE]);
                for (int64_t k = 0; k < slot; ++k)
                    add_products(a + k * segment + (own ? 0 : l.step(j)), width,
                                 pairs + k * l.blocks * panel + gate * SQUARE, panel, l.blocks);
                store_sums(&sums[q * SQUARE]);
            }
            slot = 0;
            ++batch;
        }
        for (int64_t p = from; p < to; ++p) {
            if (l.place[p] < 0) continue;
            for (int64_t c = 0; c < C; ++c) dx[l.place[p] + c] = grad[l.place[p] + c] + carry[p * CW + c];
        }
        for (int64_t q = square_from; q < square_to; ++q) {
            const int64_t row = q % CB * BLOCK, j = q / CB % (l.K + 1), gate = q / CB / (l.K + 1) / CB;
            const int64_t column = q / CB / (l.K + 1) % CB * BLOCK;
            for (int64_t i = 0; i < BLOCK && row + i < C; ++i)
                for (int64_t c = 0; c < BLOCK && column + c < C; ++c) {
                    const int64_t at = gate * C + column + c;
                    (j < l.K ? dwi[at * KC + j * C + row + i] : dwh[at * C + row + i]) = sums[q * SQUARE + i * BLOCK + c];
                }
        }
    }
    for (int64_t i = 0; i < 3 * C; ++i) {
        const int64_t gate = i / C, c = i % C;
        dbi[i] = dbh[i] = 0;
        for (int64_t block = 0; block < l.blocks; ++block) {
            const float* sum = &bias_sums[block * 4 * CW];
            dbi[i] += sum[gate * CW + c];
            dbh[i] += sum[(gate == 2 ? 3 : gate) * CW + c];
        }
    }
}

}  // namespace

extern "C" int sweep_forward_bf16(const float* x, const float* wi, const float* wh, const float* bi, const float* bh,
                                  float* h, void* gates, const int64_t* shape) {
    try {
        forward(x, wi, wh, bi, bh, h, static_cast<Gate*>(gates), shape);
        return 0;
    } catch (...) {
        return 1;
    }
}
extern "C" int sweep_backward_bf16(const float* grad, const float* x, const float* h, const void* gates,
                                   const float* wi, const float* wh, float* dx, float* dwi, float* dwh, float* dbi,
                                   float* dbh, const int64_t* shape) {
    try {
        backward(grad, x, h, static_cast<const Gate*>(gates), wi, wh, dx, dwi, dwh, dbi, dbh, shape);
        return 0;
    } catch (...) {
        return 1;
    }
}
// Whether this process may use matrix registers: the system gives them to those who ask
extern "C" int sweep_permits() {
    constexpr int REQUEST = 0x1023, MATRIX_REGISTERS = 18;
    return syscall(SYS_arch_prctl, REQUEST, MATRIX_REGISTERS) == 0;
}
#else
extern "C" int sweep_permits() { return 0; }
#endif
