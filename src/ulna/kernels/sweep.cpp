// The sweep of ulna/kernels/sweep.py for the CPU: product and gates of one line at a time, weights packed once.
//
// A map lies in memory as (N, *S, C). A line has T1 x T2 positions (T1 = 1 in 2D); a sweep visits the lines one by one, so
// all images together are one product of M = N * T1 * T2 rows a line. Threads own rows; they meet once a line.
// Previous lines are kept in buffers with a margin of zeros, so that every neighbour is a plain offset.
//
// Products run in tiles of MR rows and NR columns that stay in registers. A packed panel holds NR columns, row after row.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, MR = 12;
#elif defined(__AVX__)
constexpr int BYTES = 32, MR = 6;
#else
constexpr int BYTES = 16, MR = 6;
#endif
constexpr int NV = 2;        // vectors side by side in a tile
constexpr int BLOCK = 8 * MR;  // rows that share a panel while it is in the first cache

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
    explicit Buffer(int64_t count) {
        void* p = nullptr;
        if (posix_memalign(&p, 64, sizeof(T) * (count + NR<T>))) throw std::bad_alloc();
        data = static_cast<T*>(p);
        std::memset(data, 0, sizeof(T) * (count + NR<T>));
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    T& operator[](int64_t i) { return data[i]; }
};

// out (rows, NR) = or += row[i][0..length) * panel (length, NR), of which the first V vectors; `out` has room for whole tiles
template <typename T, bool ADD, int V>
void multiply_tiles(const T* const* row, int rows, int64_t offset, int64_t length, const T* panel, T* out) {
    for (int first = 0; first < rows; first += MR, out += MR * NR<T>) {
        const T* a[MR];
        for (int i = 0; i < MR; ++i) a[i] = row[first + i < rows ? first + i : rows - 1] + offset;
        Vec<T> sum[MR][V];
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < V; ++j) sum[i][j] = ADD ? load(out + i * NR<T> + j * WIDTH<T>) : Vec<T>{};
        const T* b = panel;
        for (int64_t k = 0; k < length; ++k, b += NR<T>) {
            Vec<T> column[V];
#pragma GCC unroll 2
            for (int j = 0; j < V; ++j) column[j] = load(b + j * WIDTH<T>);
#pragma GCC unroll 16
            for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
                for (int j = 0; j < V; ++j) sum[i][j] += a[i][k] * column[j];
        }
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < V; ++j) store(out + i * NR<T> + j * WIDTH<T>, sum[i][j]);
    }
}
template <typename T>
void multiply(bool add, int64_t columns, const T* const* row, int rows, int64_t offset, int64_t length, const T* panel,
              T* out) {
    auto run = columns > WIDTH<T> ? (add ? multiply_tiles<T, true, 2> : multiply_tiles<T, false, 2>)
                                  : (add ? multiply_tiles<T, true, 1> : multiply_tiles<T, false, 1>);
    run(row, rows, offset, length, panel, out);
}

// out (MR, NR) += a^T b over `count` rows of a (count, MR) and the first V vectors of b (count, NR)
template <typename T, int V>
void accumulate(const T* a, const T* b, int64_t count, T* out) {
    Vec<T> sum[MR][V] = {};
    for (int64_t m = 0; m < count; ++m, a += MR, b += NR<T>) {
        Vec<T> column[V];
#pragma GCC unroll 2
        for (int j = 0; j < V; ++j) column[j] = load(b + j * WIDTH<T>);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
            for (int j = 0; j < V; ++j) sum[i][j] += a[i] * column[j];
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < V; ++j) {
            T* o = out + i * NR<T> + j * WIDTH<T>;
            store(o, load(o) + sum[i][j]);
        }
}

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

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
#ifdef _OPENMP
        const int64_t tiles = ceiling(M, MR);
        threads = static_cast<int>(s[11] < tiles ? s[11] : tiles);
#endif
        for (int64_t n = 0; n < N; ++n)
            for (int64_t y = 0; y < T1; ++y)
                for (int64_t x = 0; x < T2; ++x) {
                    place.push_back(start + n * sn + y * sy + x * sx);
                    padded.push_back((n * (T1 + 2) + y + 1) * (T2 + 2) + x + 1);
                }
        padded_count = N * (T1 + 2) * (T2 + 2);
    }
    int64_t step(int64_t j) const { return dy[j] * (T2 + 2) + dx[j]; }  // to neighbour j, in positions with margins
    void rows(const Team& team, int64_t* first, int64_t* last) const {
        team.share(ceiling(M, MR), first, last);
        *first *= MR;
        *last = *last * MR < M ? *last * MR : M;
    }
};

// columns [column, column + NR) of w^T, where w is (., width) row by row: panel (count, NR) from w[row + c][first + k]
template <typename T>
T* pack_transposed(const T* w, int64_t width, int64_t row, int64_t first, int64_t count, int64_t columns, T* panel) {
    for (int64_t k = 0; k < count; ++k, panel += NR<T>)
        for (int64_t c = 0; c < NR<T>; ++c) panel[c] = c < columns ? w[(row + c) * width + first + k] : 0;
    return panel;
}
// the same of w itself: panel (count, NR) from w[row + k][first + c]
template <typename T>
T* pack(const T* w, int64_t width, int64_t row, int64_t first, int64_t count, int64_t columns, T* panel) {
    for (int64_t k = 0; k < count; ++k, panel += NR<T>)
        for (int64_t c = 0; c < NR<T>; ++c) panel[c] = c < columns ? w[(row + k) * width + first + c] : 0;
    return panel;
}

template <typename T>
void forward(const T* x, const T* wi, const T* wh, const T* bi, const T* bh, T* h, T* gates, const int64_t* shape) {
    const Lines l(shape, NR<T>);
    const int64_t C = l.C, KC = l.K * C;
    // for every group of NR channels: r and z over neighbours and position, n over neighbours, n over the position
    const int64_t panel = 3 * (KC + C) * NR<T>;
    Buffer<T> weights(l.groups * panel), biases(l.groups * 4 * NR<T>), line0(l.padded_count * C), line1(l.padded_count * C);
    Buffer<T> outs(l.threads * 4 * BLOCK * NR<T>);
    for (int64_t g = 0; g < l.groups; ++g) {
        const int64_t c = g * NR<T>, columns = C - c < NR<T> ? C - c : NR<T>;
        T* p = &weights[g * panel];
        for (int gate = 0; gate < 3; ++gate) {
            p = pack_transposed(wi, KC, gate * C + c, 0, KC, columns, p);
            p = pack_transposed(wh, C, gate * C + c, 0, C, columns, p);
        }
        T* b = &biases[g * 4 * NR<T>];
        for (int64_t i = 0; i < columns; ++i) {
            b[i] = bi[c + i] + bh[c + i];
            b[NR<T> + i] = bi[C + c + i] + bh[C + c + i];
            b[2 * NR<T> + i] = bi[2 * C + c + i];
            b[3 * NR<T> + i] = bh[2 * C + c + i];
        }
    }
    std::vector<Part> parts;  // neighbours that lie side by side are read in one go
    for (int64_t j = 0; j < l.K; ++j) {
        if (j && l.step(j) == l.step(j - 1) + 1)
            parts.back().length += C;
        else
            parts.push_back({l.step(j) * C, C});
    }
#ifdef _OPENMP
#pragma omp parallel num_threads(l.threads)
#endif
    {
        const Team team;
        int64_t first, last;
        l.rows(team, &first, &last);
        T* out = &outs[team.thread * 4 * BLOCK * NR<T>];
        const T *near[BLOCK], *own[BLOCK];
        for (int64_t r = first; r < last; ++r) {
            std::memcpy(h + l.place[r], x + l.place[r], sizeof(T) * C);
            if (gates) std::memset(gates + l.place[r] * 4, 0, sizeof(T) * C * 4);
            std::memcpy(&line0[l.padded[r] * C], x + l.place[r], sizeof(T) * C);
        }
        for (int64_t t = 1; t < l.L; ++t) {
#ifdef _OPENMP
#pragma omp barrier
#endif
            const T* before = t % 2 ? line0.data : line1.data;
            T* now = t % 2 ? line1.data : line0.data;
            for (int64_t block = first; block < last; block += BLOCK) {
                const int rows = static_cast<int>(last - block < BLOCK ? last - block : BLOCK);
                for (int i = 0; i < rows; ++i) {
                    near[i] = before + l.padded[block + i] * C;
                    own[i] = x + l.place[block + i] + t * l.st;
                }
                for (int64_t g = 0; g < l.groups; ++g) {
                    const int64_t c = g * NR<T>, columns = C - c < NR<T> ? C - c : NR<T>;
                    const T* p = &weights[g * panel];
                    T* product[4];
                    for (int i = 0; i < 4; ++i) product[i] = out + i * BLOCK * NR<T>;
                    for (int gate = 0; gate < 3; ++gate) {
                        for (size_t part = 0; part < parts.size(); ++part) {
                            multiply(part > 0, columns, near, rows, parts[part].offset, parts[part].length, p,
                                     product[gate]);
                            p += parts[part].length * NR<T>;
                        }
                        // r and z take the position's share at once; n keeps it apart, for r to weigh
                        multiply(gate < 2, columns, own, rows, 0, C, p, product[gate < 2 ? gate : 3]);
                        p += C * NR<T>;
                    }
                    const T* b = &biases[g * 4 * NR<T>];
                    for (int i = 0; i < rows; ++i) {
                        T result[5][NR<T>], state[NR<T>] = {};  // r, z, n, the hidden share of n, h
                        std::memcpy(state, own[i] + c, sizeof(T) * columns);
                        for (int v = 0; v < NR<T>; v += WIDTH<T>) {
                            const int64_t at = i * NR<T> + v;
                            const Vec<T> r = sigmoid<T>(load(product[0] + at) + load(b + v));
                            const Vec<T> z = sigmoid<T>(load(product[1] + at) + load(b + NR<T> + v));
                            const Vec<T> hidden = load(product[3] + at) + load(b + 3 * NR<T> + v);
                            const Vec<T> n = hyperbolic<T>(load(product[2] + at) + load(b + 2 * NR<T> + v) + r * hidden);
                            store(result[0] + v, r);
                            store(result[1] + v, z);
                            store(result[2] + v, n);
                            store(result[3] + v, hidden);
                            store(result[4] + v, n + z * (load(state + v) - n));
                        }
                        const int64_t place = l.place[block + i] + t * l.st + c;
                        std::memcpy(h + place, result[4], sizeof(T) * columns);
                        std::memcpy(now + l.padded[block + i] * C + c, result[4], sizeof(T) * columns);
                        if (gates)
                            for (int k = 0; k < 4; ++k)
                                std::memcpy(gates + (place - c) * 4 + k * C + c, result[k], sizeof(T) * columns);
                    }
                }
            }
        }
    }
}

template <typename T>
void backward(const T* grad, const T* x, const T* h, const T* gates, const T* wi, const T* wh, T* dx, T* dwi, T* dwh,
              T* dbi, T* dbh, const int64_t* shape) {
    const Lines l(shape, NR<T>);
    const int64_t C = l.C, KC = l.K * C, M = l.M;
    // carry: for every neighbour 3C rows of W_i; then 3C rows of W_h
    const int64_t panel = 3 * (KC + C) * NR<T>;
    Buffer<T> weights(l.groups * panel);
    for (int64_t g = 0; g < l.groups; ++g) {
        const int64_t c = g * NR<T>, columns = C - c < NR<T> ? C - c : NR<T>;
        T* p = &weights[g * panel];
        for (int64_t j = 0; j < l.K; ++j) p = pack(wi, KC, 0, j * C + c, 3 * C, columns, p);
        pack(wh, C, 0, c, 3 * C, columns, p);
    }
    // slopes of one line: (dr, dz, dn, dn * r) of every position with margins, double so that lines need one meeting
    const int64_t W = 4 * C;
    Buffer<T> slopes0(l.padded_count * W), slopes1(l.padded_count * W), carry(M * C);
    // the same of `depth` lines as tiles of MR gate channels, for the gradients of the weights
    const int64_t tiles = ceiling(W, MR), depth = ceiling(128, M) < l.L ? ceiling(128, M) : l.L, room = depth * M;
    Buffer<T> turned0(tiles * room * MR), turned1(tiles * room * MR);
    const int64_t panels = (l.K + 1) * l.groups;  // of neighbours, then of the position itself
    Buffer<T> sums(panels * tiles * MR * NR<T>);
    Buffer<T> bias_sums_of(l.threads * W), sources(l.threads * room * NR<T>), outs(l.threads * 2 * BLOCK * NR<T>);
#ifdef _OPENMP
#pragma omp parallel num_threads(l.threads)
#endif
    {
        const Team team;
        int64_t first, last, panel_first, panel_last;
        l.rows(team, &first, &last);
        team.share(panels, &panel_first, &panel_last);
        T *bias_sums = &bias_sums_of[team.thread * W], *source = &sources[team.thread * room * NR<T>];
        T *back = &outs[team.thread * 2 * BLOCK * NR<T>], *side = back + BLOCK * NR<T>;
        const T* row[BLOCK];
        int64_t slot = 0, batch = 0;
        for (int64_t t = l.L - 1; t > 0; --t) {
            T* slopes = t % 2 ? slopes1.data : slopes0.data;
            T* turned = batch % 2 ? turned1.data : turned0.data;
            for (int64_t r = first; r < last; ++r) {
                const int64_t place = l.place[r] + t * l.st;
                const T *__restrict kept = gates + place * 4, *__restrict s = x + place;
                const T *__restrict upper = grad + place, *__restrict later = &carry[r * C];
                T *__restrict d = slopes + l.padded[r] * W, *__restrict down = dx + place;
                for (int64_t c = 0; c < C; ++c) {
                    const T r_ = kept[c], z = kept[C + c], n = kept[2 * C + c], hidden = kept[3 * C + c];
                    const T g = upper[c] + later[c];
                    const T dn = g * (1 - z) * (1 - n * n);
                    d[c] = dn * hidden * r_ * (1 - r_);
                    d[C + c] = g * (s[c] - n) * z * (1 - z);
                    d[2 * C + c] = dn;
                    d[3 * C + c] = dn * r_;
                    down[c] = g * z;
                }
                for (int64_t c = 0; c < W; ++c) bias_sums[c] += d[c];
                T* to = turned + (slot * M + r) * MR;
                for (int64_t i = 0; i < W / MR; ++i, to += room * MR) std::memcpy(to, d + i * MR, sizeof(T) * MR);
                for (int64_t c = W / MR * MR; c < W; ++c) to[c % MR] = d[c];
            }
#ifdef _OPENMP
#pragma omp barrier
#endif
            for (int64_t block = first; block < last; block += BLOCK) {
                const int rows = static_cast<int>(last - block < BLOCK ? last - block : BLOCK);
                for (int i = 0; i < rows; ++i) row[i] = slopes + l.padded[block + i] * W;
                for (int64_t g = 0; g < l.groups; ++g) {
                    const T* p = &weights[g * panel];
                    const int64_t c = g * NR<T>, columns = C - c < NR<T> ? C - c : NR<T>;
                    for (int64_t j = 0; j < l.K; ++j, p += 3 * C * NR<T>)
                        multiply(j > 0, columns, row, rows, -l.step(j) * W, 3 * C, p, back);
                    multiply(false, columns, row, rows, 0, 2 * C, p, side);
                    multiply(true, columns, row, rows, 3 * C, C, p + 2 * C * NR<T>, side);
                    for (int i = 0; i < rows; ++i) {
                        std::memcpy(&carry[(block + i) * C + c], back + i * NR<T>, sizeof(T) * columns);
                        T* down = dx + l.place[block + i] + t * l.st + c;
                        for (int64_t k = 0; k < columns; ++k) down[k] += side[i * NR<T> + k];
                    }
                }
            }
            if (++slot < depth && t > 1) continue;
            // the lines gathered so far are t .. t + slot - 1, the latest first in the buffer
            for (int64_t q = panel_first; q < panel_last; ++q) {
                const int64_t j = q / l.groups, c = q % l.groups * NR<T>, columns = C - c < NR<T> ? C - c : NR<T>;
                const bool own = j == l.K;
                T* to = source;
                for (int64_t k = 0; k < slot; ++k) {
                    const int64_t line = t + slot - 1 - k;
                    for (int64_t n = 0; n < l.N; ++n)
                        for (int64_t y = 0; y < l.T1; ++y)
                            for (int64_t px = 0; px < l.T2; ++px, to += NR<T>) {
                                const int64_t a = own ? y : y + l.dy[j], b = own ? px : px + l.dx[j];
                                if (a < 0 || a >= l.T1 || b < 0 || b >= l.T2) {
                                    std::memset(to, 0, sizeof(T) * NR<T>);
                                    continue;
                                }
                                const T* from = own ? x : h;
                                const int64_t at = l.start + n * l.sn + a * l.sy + b * l.sx + (line - !own) * l.st + c;
                                if (columns == NR<T>)
                                    std::memcpy(to, from + at, sizeof(T) * NR<T>);
                                else
                                    std::memcpy(to, from + at, sizeof(T) * columns);
                            }
                }
                for (int64_t i = 0; i < tiles; ++i) {
                    const int64_t low = i * MR, high = low + MR;  // gate channels of this tile
                    const bool wanted = own ? low < 2 * C || high > 3 * C : low < 3 * C;
                    auto run = columns > WIDTH<T> ? accumulate<T, 2> : accumulate<T, 1>;
                    if (wanted) run(turned + i * room * MR, source, slot * M, &sums[(q * tiles + i) * MR * NR<T>]);
                }
            }
            slot = 0;
            ++batch;
        }
        for (int64_t r = first; r < last; ++r)
            for (int64_t c = 0; c < C; ++c) dx[l.place[r] + c] = grad[l.place[r] + c] + carry[r * C + c];
    }
    for (int64_t q = 0; q < panels; ++q) {
        const int64_t j = q / l.groups, c = q % l.groups * NR<T>, columns = C - c < NR<T> ? C - c : NR<T>;
        const bool own = j == l.K;
        for (int64_t i = 0; i < 3 * C; ++i) {
            const int64_t channel = own && i >= 2 * C ? i + C : i;
            T* to = own ? dwh + i * C + c : dwi + i * KC + j * C + c;
            std::memcpy(to, &sums[q * tiles * MR * NR<T> + channel * NR<T>], sizeof(T) * columns);
        }
    }
    for (int64_t i = 0; i < 3 * C; ++i) {
        dbi[i] = dbh[i] = 0;
        for (int thread = 0; thread < l.threads; ++thread) {
            dbi[i] += bias_sums_of[thread * W + i];
            dbh[i] += bias_sums_of[thread * W + (i < 2 * C ? i : i + C)];
        }
    }
}

}  // namespace

#define EXPORT(T, NAME)                                                                                               \
    extern "C" int sweep_forward_##NAME(const T* x, const T* wi, const T* wh, const T* bi, const T* bh, T* h, T* gates, \
                                        const int64_t* shape) {                                                       \
        try {                                                                                                         \
            forward<T>(x, wi, wh, bi, bh, h, gates, shape);                                                           \
            return 0;                                                                                                 \
        } catch (...) {                                                                                               \
            return 1;                                                                                                 \
        }                                                                                                             \
    }                                                                                                                 \
    extern "C" int sweep_backward_##NAME(const T* grad, const T* x, const T* h, const T* gates, const T* wi,          \
                                         const T* wh, T* dx, T* dwi, T* dwh, T* dbi, T* dbh, const int64_t* shape) {  \
        try {                                                                                                         \
            backward<T>(grad, x, h, gates, wi, wh, dx, dwi, dwh, dbi, dbh, shape);                                    \
            return 0;                                                                                                 \
        } catch (...) {                                                                                               \
            return 1;                                                                                                 \
        }                                                                                                             \
    }

EXPORT(float, f32)
EXPORT(double, f64)
