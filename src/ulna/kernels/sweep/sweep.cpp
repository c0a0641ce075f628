// The sweep of ulna/kernels/sweep/dispatch.py for the CPU: product and gates of one line at a time, weights packed once.
//
// A map lies in memory as (N, *S, C). A line has T1 x T2 positions (T1 = 1 in 2D); a sweep visits the lines one by one, so
// all images together are one product of M = N * T1 * T2 rows a line. Threads own rows; they meet once a line.
// Previous lines are kept in buffers with a margin of zeros, so that every neighbour is a plain offset.
//
// Products run in tiles of MR rows and up to NR columns that stay in registers. A packed panel holds the columns of one
// tile, row after row, in whole vectors.
// Their operands are the map's own numbers, or pairs of bfloat16 that one instruction multiplies and adds in float32;
// everything between products is in the map's precision. No sum depends on how many threads there are.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

// 8 x 3: as few loads a product as 32 registers allow, and few enough row pointers to stay in registers themselves
#if defined(__AVX512F__)
constexpr int BYTES = 64, MR = 8;
#elif defined(__AVX__)
constexpr int BYTES = 32, MR = 4;
#else
constexpr int BYTES = 16, MR = 4;
#endif
constexpr int NV = 3;           // vectors side by side in a tile
constexpr int BLOCK = 24 * MR;  // rows that share a panel while it is in the second cache

struct Pair {  // two bfloat16, the first in the lower half
    uint32_t bits;
};
template <typename O>
constexpr int PACK = 1;  // numbers in an operand
template <>
constexpr int PACK<Pair> = 2;
template <typename O>
struct Numbers {
    using T = O;
};
template <>
struct Numbers<Pair> {
    using T = float;
};
template <typename O>
using Number = typename Numbers<O>::T;  // what maps, sums and gates are in

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
    typedef float V __attribute__((vector_size(BYTES)));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    static constexpr float limit = 87.0f, log2e = 1.44269504f, high = 0.693359375f, low = -2.12194440e-4f;
    static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr int shift = 23, bias = 127, terms = 7;
};
template <>
struct Lanes<double> {
    typedef double V __attribute__((vector_size(BYTES)));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    static constexpr double limit = 708.0, log2e = 1.4426950408889634, high = 6.93145751953125e-1;
    static constexpr double low = 1.42860682030941723212e-6;
    static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr int shift = 52, bias = 1023, terms = 13;
};

template <typename T>
using Vec = typename Lanes<T>::V;
template <typename T>
constexpr int WIDTH = BYTES / sizeof(T);
template <typename T>
constexpr int NR = NV * WIDTH<T>;

template <typename T>
inline Vec<T> load(const T* p) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <typename T>
inline void store(T* p, Vec<T> v) {
    std::memcpy(p, &v, sizeof v);
}
template <typename T>
inline Vec<T> load(const T* p, int64_t n) {  // the first n values, then zeros
    if (n >= WIDTH<T>) return load(p);
    Vec<T> v = {};
    std::memcpy(&v, p, n * sizeof(T));
    return v;
}
template <typename T>
inline void store(T* p, Vec<T> v, int64_t n) {
    if (n >= WIDTH<T>) return store(p, v);
    std::memcpy(p, &v, n * sizeof(T));
}

// one step of a product
template <typename T>
inline Vec<T> multiply_add(Vec<T> sum, T a, Vec<T> b) {
    return sum + a * b;
}
// n numbers of a row of operands, from the number `at` on
template <typename T>
inline void put(T* row, int64_t at, Vec<T> v, int64_t n) {
    store(row + at, v, n);
}
// operands along the rows of a matrix: a vector of columns of as many rows as an operand has numbers
template <typename T>
inline T weave(const T (&rows)[1]) {  // T: a vector
    return rows[0];
}
#ifdef __AVX512BF16__
inline Vec<float> multiply_add(Vec<float> sum, Pair a, Vec<float> b) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a.bits), (__m512bh)b);
}
inline void put(Pair* row, int64_t at, Vec<float> v, int64_t n) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)v);
    uint16_t* to = reinterpret_cast<uint16_t*>(row) + at;
    std::memcpy(to, &halves, n >= WIDTH<float> ? sizeof halves : n * sizeof(uint16_t));
}
inline Vec<float> weave(const Vec<float> (&rows)[2]) {
    typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));
    typedef uint32_t Words __attribute__((vector_size(BYTES)));
    const Halves a = (Halves)_mm512_cvtneps_pbh((__m512)rows[0]), b = (Halves)_mm512_cvtneps_pbh((__m512)rows[1]);
    return (Vec<float>)(__builtin_convertvector(a, Words) | __builtin_convertvector(b, Words) << 16);
}
#endif
template <typename O>
inline Vec<Number<O>> load_operands(const O* p) {
    Vec<Number<O>> v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <typename O>
inline void store_operands(O* p, Vec<Number<O>> v) {
    std::memcpy(p, &v, sizeof v);
}
// f(c, n) for every vector of a row, n of its numbers valid; inlined twice, so that whole vectors have no branches
#define INLINED __attribute__((always_inline))
template <typename T, typename F>
inline void over_vectors(int64_t count, F f) {
    int64_t c = 0;
    for (; c + WIDTH<T> <= count; c += WIDTH<T>) f(c, WIDTH<T>);
    if (c < count) f(c, count - c);
}
template <typename O>
inline void put_row(O* row, const Number<O>* from, int64_t count) {
    over_vectors<Number<O>>(count, [&](int64_t c, int64_t n) INLINED { put(row, c, load(from + c, n), n); });
}
// a row of operands along the rows of a matrix, in whole vectors
template <typename O>
inline void weave_row(O* row, const Number<O>* const (&rows)[PACK<O>], int64_t count) {
    using T = Number<O>;
    over_vectors<T>(count, [&](int64_t c, int64_t n) INLINED {
        Vec<T> parts[PACK<O>];
        for (int i = 0; i < PACK<O>; ++i) parts[i] = load(rows[i] + c, n);
        store_operands(row + c, weave(parts));
    });
}

// e^x as 2^k * e^r with |r| <= ln 2 / 2, the second factor by its power series
template <typename T>
inline Vec<T> exponential(Vec<T> x) {
    using L = Lanes<T>;
    x = x < -L::limit ? Vec<T>{} - L::limit : x;
    x = x > L::limit ? Vec<T>{} + L::limit : x;
    const Vec<T> shifted = x * L::log2e + L::magic, k = shifted - L::magic;
    const Vec<T> r = (x - k * L::high) - k * L::low;
    T factorial[L::terms + 1] = {1};
    for (int i = 1; i <= L::terms; ++i) factorial[i] = factorial[i - 1] * i;
    Vec<T> sum = Vec<T>{} + 1 / factorial[L::terms];
    for (int i = L::terms - 1; i >= 0; --i) sum = sum * r + 1 / factorial[i];
    typename L::I bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    T magic = L::magic;
    decltype(bits[0] + 0) zero = 0;
    std::memcpy(&zero, &magic, sizeof magic);
    bits = (bits - (typename L::I{} + zero) + L::bias) << L::shift;
    Vec<T> power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}
template <typename T>
inline Vec<T> sigmoid(Vec<T> x) {
    return 1 / (1 + exponential<T>(-x));
}
template <typename T>
inline Vec<T> hyperbolic(Vec<T> x) {
    return 1 - 2 / (1 + exponential<T>(x + x));
}

template <typename T>
struct Buffer {
    T* data = nullptr;
    explicit Buffer(int64_t count, bool zeros = true) {
        void* p = nullptr;
        if (posix_memalign(&p, 64, sizeof(T) * (count + NR<T>))) throw std::bad_alloc();
        data = static_cast<T*>(p);
        if (zeros) std::memset(data, 0, sizeof(T) * (count + NR<T>));
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    T& operator[](int64_t i) { return data[i]; }
};

// out (rows, NR) = or += row[i][0..length) * panel (length, V vectors); `out` has room for whole tiles
template <typename O, bool ADD, int V>
void multiply_tiles(const O* const* row, int rows, int64_t offset, int64_t length, const O* panel, Number<O>* out) {
    using T = Number<O>;
    for (int first = 0; first < rows; first += MR, out += MR * NR<T>) {
        const O* a[MR];
        for (int i = 0; i < MR; ++i) a[i] = row[first + i < rows ? first + i : rows - 1] + offset;
        Vec<T> sum[MR][V];
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) sum[i][j] = ADD ? load(out + i * NR<T> + j * WIDTH<T>) : Vec<T>{};
        const O* b = panel;
        for (int64_t k = 0; k < length; ++k, b += V * WIDTH<T>) {
            Vec<T> column[V];
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) column[j] = load_operands(b + j * WIDTH<T>);
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
                for (int j = 0; j < V; ++j) sum[i][j] = multiply_add(sum[i][j], a[i][k], column[j]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) store(out + i * NR<T> + j * WIDTH<T>, sum[i][j]);
    }
}
template <typename O, bool ADD>
void multiply(int64_t columns, const O* const* row, int rows, int64_t offset, int64_t length, const O* panel,
              Number<O>* out) {
    constexpr int64_t W = WIDTH<Number<O>>;
    auto run = columns > 2 * W ? multiply_tiles<O, ADD, 3>
               : columns > W   ? multiply_tiles<O, ADD, 2>
                               : multiply_tiles<O, ADD, 1>;
    run(row, rows, offset, length, panel, out);
}
template <typename O>
void multiply(bool add, int64_t columns, const O* const* row, int rows, int64_t offset, int64_t length, const O* panel,
              Number<O>* out) {
    (add ? multiply<O, true> : multiply<O, false>)(columns, row, rows, offset, length, panel, out);
}

// out (MR, NR) += a^T b over `count` rows of a (count, MR) and b (count, V vectors)
template <typename O, int V>
void accumulate(const O* a, const O* b, int64_t count, Number<O>* out) {
    using T = Number<O>;
    Vec<T> sum[MR][V] = {};
    for (int64_t m = 0; m < count; ++m, a += MR, b += V * WIDTH<T>) {
        Vec<T> column[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) column[j] = load_operands(b + j * WIDTH<T>);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < V; ++j) sum[i][j] = multiply_add(sum[i][j], a[i], column[j]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < V; ++j) {
            T* o = out + i * NR<T> + j * WIDTH<T>;
            store(o, load(o) + sum[i][j]);
        }
}

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Large pages for a result that is written here first: a tenth of a sweep's time went into faults of small ones
inline void in_large_pages([[maybe_unused]] void* p, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t PAGE = 2 << 20;
    const uintptr_t start = (reinterpret_cast<uintptr_t>(p) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) / PAGE * PAGE;
    if (start < end) madvise(reinterpret_cast<void*>(start), end - start, MADV_HUGEPAGE);
#endif
}

struct Part {
    int64_t offset, length;  // of a row, in values
};

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

// What both passes share: the geometry of lines, and who owns which rows
struct Lines {
    int64_t N, L, T1, T2, C, K, sn, st, sy, sx, start, M, groups;
    int threads;
    const int64_t *dy, *dx;
    std::vector<int64_t> place, padded;  // of every row: in the map, and in a line with margins (in positions)
    int64_t padded_count;

    explicit Lines(const int64_t* s, int width)
        : N(s[0]), L(s[1]), T1(s[2]), T2(s[3]), C(s[4]), K(s[5]), sn(s[6]), st(s[7]), sy(s[8]), sx(s[9]), start(s[10]),
          M(s[0] * s[2] * s[3]), groups(ceiling(s[4], width)), threads(1), dy(s + 12), dx(s + 12 + s[5]) {
        const int64_t above = std::any_of(dy, dy + K, [](int64_t step) { return step != 0; });  // rows of margin
#ifdef _OPENMP
        const int64_t tiles = ceiling(M, MR);
        threads = static_cast<int>(s[11] < tiles ? s[11] : tiles);
#endif
        for (int64_t n = 0; n < N; ++n)
            for (int64_t y = 0; y < T1; ++y)
                for (int64_t x = 0; x < T2; ++x) {
                    place.push_back(start + n * sn + y * sy + x * sx);
                    padded.push_back((n * (T1 + 2 * above) + y + above) * (T2 + 2) + x + 1);
                }
        padded_count = N * (T1 + 2 * above) * (T2 + 2);
    }
    int64_t step(int64_t j) const { return dy[j] * (T2 + 2) + dx[j]; }  // to neighbour j, in positions with margins
    void rows(const Team& team, int64_t* first, int64_t* last) const {
        team.share(ceiling(M, MR), first, last);
        *first *= MR;
        *last = *last * MR < M ? *last * MR : M;
    }
};

// The columns that a panel covers: C of them in groups of NR, the last group in as many vectors as it needs
template <typename O>
struct Columns {
    int64_t first, count, wide;  // wide: in whole vectors
    Columns(int64_t C, int64_t group) : first(group * NR<O>), count(C - first < NR<O> ? C - first : NR<O>) {
        wide = ceiling(count, WIDTH<O>) * WIDTH<O>;
    }
};

// zeros in the columns that only fill the last vector: a panel is written once, and whole
template <typename O>
void fill_up(Columns<O> columns, O* panel) {
    for (int64_t c = columns.count; c < columns.wide; ++c) panel[c] = O{};
}
// columns of w^T, where w is (., width) row by row: panel (count, wide) of operands from w[row + c][first + k]
template <typename O>
O* pack_transposed(const Number<O>* w, int64_t width, int64_t row, int64_t first, int64_t count, Columns<O> columns,
                   O* panel) {
    constexpr int64_t SOME = 16;  // rows of the panel that stay in the first cache while all columns pass
    for (int64_t k = 0; k < count; k += SOME * PACK<O>) {
        O line[SOME] = {};  // the half of an odd last number stays zero: a NaN that lay there would meet zeros and win
        const int64_t numbers = std::min(count - k, SOME * PACK<O>), length = ceiling(numbers, PACK<O>);
        for (int64_t c = 0; c < columns.count; ++c) {
            put_row(line, w + (row + c) * width + first + k, numbers);
            for (int64_t i = 0; i < length; ++i) panel[i * columns.wide + c] = line[i];
        }
        for (int64_t i = 0; i < length; ++i, panel += columns.wide) fill_up(columns, panel);
    }
    return panel;
}
// the same of w itself: panel (count, wide) of operands from w[row + k][first + c]
template <typename O>
O* pack(const Number<O>* w, int64_t width, int64_t row, int64_t first, int64_t count, Columns<O> columns, O* panel) {
    using T = Number<O>;
    const T zeros[NR<T>] = {};
    for (int64_t k = 0; k < count; k += PACK<O>, panel += columns.wide) {
        const T* rows[PACK<O>];
        for (int i = 0; i < PACK<O>; ++i) rows[i] = k + i < count ? w + (row + k + i) * width + first : zeros;
        weave_row(panel, rows, columns.count);
        fill_up(columns, panel);
    }
    return panel;
}

template <typename O>
void forward(const Number<O>* x, const Number<O>* wi, const Number<O>* wh, const Number<O>* bi, const Number<O>* bh,
             Number<O>* h, Number<O>* gates, const int64_t* shape) {
    using T = Number<O>;
    const Lines l(shape, NR<T>);
    const int64_t C = l.C, CO = ceiling(C, PACK<O>), KC = l.K * C;
    // for every group of channels: r and z over neighbours and position, n over neighbours, n over the position
    const int64_t third = (l.K + 1) * CO;  // rows of a panel
    Buffer<O> weights(ceiling(C, WIDTH<T>) * WIDTH<T> * 3 * third, false);
    Buffer<O> line0(l.padded_count * CO), line1(l.padded_count * CO), owns(PACK<O> > 1 ? l.threads * BLOCK * CO : 0);
    Buffer<T> biases(l.groups * 4 * NR<T>), outs(l.threads * 4 * BLOCK * NR<T>, false);
    for (int64_t c = 0; c < C; ++c) {
        T* b = &biases[c / NR<T> * 4 * NR<T> + c % NR<T>];
        b[0] = bi[c] + bh[c];
        b[NR<T>] = bi[C + c] + bh[C + c];
        b[2 * NR<T>] = bi[2 * C + c];
        b[3 * NR<T>] = bh[2 * C + c];
    }
    in_large_pages(h, l.M * l.L * C * sizeof(T));
    if (gates) in_large_pages(gates, l.M * l.L * C * 4 * sizeof(T));
    std::vector<Part> parts;  // neighbours that lie side by side are read in one go
    for (int64_t j = 0; j < l.K; ++j) {
        if (j && l.step(j) == l.step(j - 1) + 1)
            parts.back().length += CO;
        else
            parts.push_back({l.step(j) * CO, CO});
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(l.threads)
#endif
    {
        const Team team;
        int64_t first, last;
        team.share(l.groups * 3, &first, &last);
        for (int64_t i = first; i < last; ++i) {
            const Columns<O> columns(C, i / 3);
            const int64_t row = i % 3 * C + columns.first;
            O* p = &weights[3 * third * columns.first + i % 3 * third * columns.wide];
            for (int64_t j = 0; j < l.K; ++j) p = pack_transposed(wi, KC, row, j * C, C, columns, p);
            pack_transposed(wh, C, row, 0, C, columns, p);
        }
        l.rows(team, &first, &last);
        T* out = &outs[team.thread * 4 * BLOCK * NR<T>];
        const O *near[BLOCK], *own[BLOCK];
        for (int64_t r = first; r < last; ++r) {
            std::memcpy(h + l.place[r], x + l.place[r], sizeof(T) * C);
            if (gates) std::memset(gates + l.place[r] * 4, 0, sizeof(T) * C * 4);
            put_row(&line0[l.padded[r] * CO], x + l.place[r], C);
        }
        for (int64_t t = 1; t < l.L; ++t) {
#ifdef _OPENMP
#pragma omp barrier
#endif
            const O* before = t % 2 ? line0.data : line1.data;
            O* now = t % 2 ? line1.data : line0.data;
            for (int64_t block = first; block < last; block += BLOCK) {
                const int rows = static_cast<int>(last - block < BLOCK ? last - block : BLOCK);
                for (int i = 0; i < rows; ++i) {
                    near[i] = before + l.padded[block + i] * CO;
                    const T* s = x + l.place[block + i] + t * l.st;
                    if constexpr (PACK<O> == 1) {
                        own[i] = s;
                    } else {
                        O* narrow = &owns[(team.thread * BLOCK + i) * CO];
                        put_row(narrow, s, C);
                        own[i] = narrow;
                    }
                }
                for (int64_t g = 0; g < l.groups; ++g) {
                    const auto [c, columns, wide] = Columns<O>(C, g);
                    const O* p = &weights[3 * third * c];
                    T* product[4];
                    for (int i = 0; i < 4; ++i) product[i] = out + i * BLOCK * NR<T>;
                    for (int gate = 0; gate < 3; ++gate) {
                        for (size_t part = 0; part < parts.size(); ++part) {
                            multiply(part > 0, columns, near, rows, parts[part].offset, parts[part].length, p,
                                     product[gate]);
                            p += parts[part].length * wide;
                        }
                        // r and z take the position's share at once; n keeps it apart, for r to weigh
                        multiply(gate < 2, columns, own, rows, 0, CO, p, product[gate < 2 ? gate : 3]);
                        p += CO * wide;
                    }
                    const T* b = &biases[g * 4 * NR<T>];
                    for (int i = 0; i < rows; ++i) {
                        const int64_t place = l.place[block + i] + t * l.st;
                        O* state = now + l.padded[block + i] * CO;
                        over_vectors<T>(columns, [&](int64_t v, int64_t count) INLINED {
                            const int64_t at = i * NR<T> + v;
                            const Vec<T> r = sigmoid<T>(load(product[0] + at) + load(b + v));
                            const Vec<T> z = sigmoid<T>(load(product[1] + at) + load(b + NR<T> + v));
                            const Vec<T> hidden = load(product[3] + at) + load(b + 3 * NR<T> + v);
                            const Vec<T> n = hyperbolic<T>(load(product[2] + at) + load(b + 2 * NR<T> + v) + r * hidden);
                            const Vec<T> swept = n + z * (load(x + place + c + v, count) - n);
                            store(h + place + c + v, swept, count);
                            put(state, c + v, swept, count);
                            if (!gates) return;
                            T* kept = gates + place * 4 + c + v;
                            store(kept, r, count);
                            store(kept + C, z, count);
                            store(kept + 2 * C, n, count);
                            store(kept + 3 * C, hidden, count);
                        });
                    }
                }
            }
        }
    }
}

template <typename O>
void backward(const Number<O>* grad, const Number<O>* x, const Number<O>* h, const Number<O>* gates, const Number<O>* wi,
              const Number<O>* wh, Number<O>* dx, Number<O>* dwi, Number<O>* dwh, Number<O>* dbi, Number<O>* dbh,
              const int64_t* shape) {
    using T = Number<O>;
    const Lines l(shape, NR<T>);
    const int64_t C = l.C, CO = ceiling(C, PACK<O>), CP = CO * PACK<O>, KC = l.K * C, M = l.M, MO = ceiling(M, PACK<O>);
    in_large_pages(dx, M * l.L * C * sizeof(T));
    // carry: for every neighbour 3C rows of W_i; then 3C rows of W_h
    const int64_t panel = 3 * (l.K + 1) * CO;  // rows
    Buffer<O> weights(ceiling(C, WIDTH<T>) * WIDTH<T> * panel, false);
    // slopes of one line: (dr, dz, dn, dn * r) of every position with margins, double so that lines need one meeting
    const int64_t WO = 4 * CO;
    Buffer<O> slopes0(l.padded_count * WO), slopes1(l.padded_count * WO);
    Buffer<T> carry(M * C);
    // the same of `depth` lines as tiles of MR gate channels, for the gradients of the weights
    const int64_t tiles = ceiling(C, MR), depth = ceiling(128, M) < l.L ? ceiling(128, M) : l.L, room = depth * MO;
    Buffer<O> turned0(4 * tiles * room * MR, false), turned1(4 * tiles * room * MR, false);
    // panels of neighbours, then of the position itself; the former have no use for dn * r
    const int64_t panels = (l.K + 1) * l.groups;
    const int64_t panel_sums = 3 * tiles * MR * NR<T>;
    Buffer<T> sums(panels * panel_sums, false);
    const int64_t wide = ceiling(C, WIDTH<T>) * WIDTH<T>;
    Buffer<T> bias_sums(ceiling(M, MR) * 4 * wide), outs(l.threads * 2 * BLOCK * NR<T>, false);  // sums of every MR rows
    Buffer<O> sources(l.threads * room * NR<T>, false);
    std::vector<int64_t> reads;  // for every panel's neighbour and row: its place in a line, -1 outside
    for (int64_t j = 0; j <= l.K; ++j)
        for (int64_t r = 0; r < M; ++r) {
            const int64_t dy = j < l.K ? l.dy[j] : 0, dx_ = j < l.K ? l.dx[j] : 0;
            const int64_t px = r % l.T2 + dx_, y = r / l.T2 % l.T1 + dy;
            const bool inside = px >= 0 && px < l.T2 && y >= 0 && y < l.T1;
            reads.push_back(inside ? l.place[r] + dy * l.sy + dx_ * l.sx : -1);
        }
#ifdef _OPENMP
#pragma omp parallel num_threads(l.threads)
#endif
    {
        const Team team;
        int64_t first, last, panel_first, panel_last;
        team.share(panels, &panel_first, &panel_last);
        std::memset(&sums[panel_first * panel_sums], 0, sizeof(T) * (panel_last - panel_first) * panel_sums);
        for (int64_t q = panel_first; q < panel_last; ++q) {
            const int64_t j = q / l.groups;
            const Columns<O> columns(C, q % l.groups);
            O* p = &weights[panel * columns.first + j * 3 * CO * columns.wide];
            for (int gate = 0; gate < 3; ++gate)
                p = j < l.K ? pack(wi, KC, gate * C, j * C + columns.first, C, columns, p)
                            : pack(wh, C, gate * C, columns.first, C, columns, p);
        }
        l.rows(team, &first, &last);
        T *back = &outs[team.thread * 2 * BLOCK * NR<T>], *side = back + BLOCK * NR<T>;
        O* source = &sources[team.thread * room * NR<T>];
        const O* row[BLOCK];
        const T zeros[NR<T>] = {};
        int64_t slot = 0, batch = 0;
        for (int64_t t = l.L - 1; t > 0; --t) {
            O* slopes = t % 2 ? slopes1.data : slopes0.data;
            O* turned = batch % 2 ? turned1.data : turned0.data;
            for (int64_t r = first; r < last; r += PACK<O>) {
                const int count = last - r < PACK<O> ? 1 : PACK<O>;  // an odd last row is followed by zeros
                int64_t places[PACK<O>];
                for (int i = 0; i < count; ++i) places[i] = l.place[r + i] + t * l.st;
                for (int64_t i = r + PACK<O>; i < r + 2 * PACK<O> && i < last; ++i) {
                    // the next position's gates lie elsewhere: nobody else would fetch them in time
                    const T* next = gates + (l.place[i] + t * l.st) * 4;
                    for (int64_t c = 0; c < 4 * C; c += 64 / sizeof(T)) __builtin_prefetch(next + c);
                }
                T* sum = &bias_sums[r / MR * 4 * wide];
                over_vectors<T>(C, [&](int64_t c, int64_t valid) INLINED {
                    Vec<T> d[4][PACK<O>] = {};
                    for (int i = 0; i < count; ++i) {
                        const T* kept = gates + places[i] * 4 + c;
                        const Vec<T> r_ = load(kept, valid), z = load(kept + C, valid), n = load(kept + 2 * C, valid);
                        const Vec<T> hidden = load(kept + 3 * C, valid), s = load(x + places[i] + c, valid);
                        const Vec<T> g = load(grad + places[i] + c, valid) + load(&carry[(r + i) * C + c], valid);
                        const Vec<T> dn = g * (1 - z) * (1 - n * n);
                        d[0][i] = dn * hidden * r_ * (1 - r_);
                        d[1][i] = g * (s - n) * z * (1 - z);
                        d[2][i] = dn;
                        d[3][i] = dn * r_;
                        store(dx + places[i] + c, g * z, valid);
                        O* line = slopes + l.padded[r + i] * WO;
                        for (int k = 0; k < 4; ++k) {
                            put(line, k * CP + c, d[k][i], valid);
                            store(sum + k * wide + c, load(sum + k * wide + c) + d[k][i]);
                        }
                    }
                    for (int k = 0; k < 4; ++k) {
                        O part[WIDTH<T>];
                        store_operands(part, weave(d[k]));
                        constexpr int STEP = WIDTH<T> < MR ? WIDTH<T> : MR;
                        for (int64_t i = 0; i < WIDTH<T> && i < valid; i += STEP) {
                            const int64_t tile = k * tiles + (c + i) / MR, at = slot * MO + r / PACK<O>;
                            std::memcpy(turned + (tile * room + at) * MR + (c + i) % MR, part + i, sizeof(O) * STEP);
                        }
                    }
                });
            }
#ifdef _OPENMP
#pragma omp barrier
#endif
            for (int64_t block = first; block < last; block += BLOCK) {
                const int rows = static_cast<int>(last - block < BLOCK ? last - block : BLOCK);
                for (int i = 0; i < rows; ++i) row[i] = slopes + l.padded[block + i] * WO;
                for (int64_t g = 0; g < l.groups; ++g) {
                    const auto [c, columns, wide] = Columns<O>(C, g);
                    const O* p = &weights[panel * c];
                    for (int64_t j = 0; j < l.K; ++j, p += 3 * CO * wide)
                        multiply(j > 0, columns, row, rows, -l.step(j) * WO, 3 * CO, p, back);
                    multiply(false, columns, row, rows, 0, 2 * CO, p, side);
                    multiply(true, columns, row, rows, 3 * CO, CO, p + 2 * CO * wide, side);
                    for (int i = 0; i < rows; ++i) {
                        T *later = &carry[(block + i) * C + c], *down = dx + l.place[block + i] + t * l.st + c;
                        const T *now = back + i * NR<T>, *more = side + i * NR<T>;
                        over_vectors<T>(columns, [&](int64_t v, int64_t count) INLINED {
                            store(later + v, load(now + v), count);
                            store(down + v, load(down + v, count) + load(more + v), count);
                        });
                    }
                }
            }
            if (++slot < depth && t > 1) continue;
            // the lines gathered so far are t .. t + slot - 1, the latest first in the buffer
            for (int64_t q = panel_first; q < panel_last; ++q) {
                const int64_t j = q / l.groups;
                const auto [c, columns, wide] = Columns<O>(C, q % l.groups);
                const bool own = j == l.K;
                O* to = source;
                for (int64_t k = 0; k < slot; ++k) {
                    const int64_t line = t + slot - 1 - k;
                    const T* from = (own ? x : h) + (line - !own) * l.st + c;
                    for (int64_t r = 0; r < M; r += PACK<O>, to += wide) {
                        const T* rows[PACK<O>];
                        for (int i = 0; i < PACK<O>; ++i) {
                            const int64_t at = r + i < M ? reads[j * M + r + i] : -1;
                            rows[i] = at < 0 ? zeros : from + at;
                        }
                        weave_row(to, rows, columns);
                    }
                }
                auto run = columns > 2 * WIDTH<T> ? accumulate<O, 3>
                           : columns > WIDTH<T>   ? accumulate<O, 2>
                                                  : accumulate<O, 1>;
                for (int64_t i = 0; i < 3 * tiles; ++i) {
                    const int64_t tile = own && i >= 2 * tiles ? i + tiles : i;  // dn * r for the position itself
                    run(turned + tile * room * MR, source, slot * MO, &sums[q * panel_sums + i * MR * NR<T>]);
                }
            }
            slot = 0;
            ++batch;
        }
        for (int64_t r = first; r < last; ++r)
            for (int64_t c = 0; c < C; ++c) dx[l.place[r] + c] = grad[l.place[r] + c] + carry[r * C + c];
        for (int64_t q = panel_first; q < panel_last; ++q) {
            const int64_t j = q / l.groups;
            const Columns<O> columns(C, q % l.groups);
            for (int64_t i = 0; i < 3 * C; ++i) {
                T* to = j == l.K ? dwh + i * C + columns.first : dwi + i * KC + j * C + columns.first;
                const T* from = &sums[q * panel_sums + (i / C * tiles * MR + i % C) * NR<T>];
                std::memcpy(to, from, sizeof(T) * columns.count);
            }
        }
    }
    for (int64_t i = 0; i < 3 * C; ++i) {
        const int64_t gate = i / C, c = i % C;
        dbi[i] = dbh[i] = 0;
        for (int64_t tile = 0; tile < ceiling(M, MR); ++tile) {
            const T* sum = &bias_sums[tile * 4 * wide];
            dbi[i] += sum[gate * wide + c];
            dbh[i] += sum[(gate == 2 ? 3 : gate) * wide + c];
        }
    }
}

}  // namespace

#define EXPORT(O, NAME)                                                                                              \
    extern "C" int sweep_forward_##NAME(const Number<O>* x, const Number<O>* wi, const Number<O>* wh,                \
                                        const Number<O>* bi, const Number<O>* bh, Number<O>* h, Number<O>* gates,    \
                                        const int64_t* shape) {                                                      \
        try {                                                                                                        \
            forward<O>(x, wi, wh, bi, bh, h, gates, shape);                                                          \
            return 0;                                                                                                \
        } catch (...) {                                                                                              \
            return 1;                                                                                                \
        }                                                                                                            \
    }                                                                                                                \
    extern "C" int sweep_backward_##NAME(const Number<O>* grad, const Number<O>* x, const Number<O>* h,              \
                                         const Number<O>* gates, const Number<O>* wi, const Number<O>* wh,           \
                                         Number<O>* dx, Number<O>* dwi, Number<O>* dwh, Number<O>* dbi,              \
                                         Number<O>* dbh, const int64_t* shape) {                                     \
        try {                                                                                                        \
            backward<O>(grad, x, h, gates, wi, wh, dx, dwi, dwh, dbi, dbh, shape);                                   \
            return 0;                                                                                                \
        } catch (...) {                                                                                              \
            return 1;                                                                                                \
        }                                                                                                            \
    }

EXPORT(float, f32)
EXPORT(double, f64)
#ifdef __AVX512BF16__
EXPORT(Pair, bf16)
#endif
