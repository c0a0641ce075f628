// Normalisation of every channel of an image, with the activation after it, for maps in float32 or bfloat16 that lie channels last.
//
// Two passes over the map forward (sums; scale, shift, activation) and two backward (sums; gradient), where separate
// operations of torch make six and more. A map is cut into chunks of rows by its shape alone, and their sums are added in
// double precision in a fixed order: the bits do not depend on the number of threads, nor on the batch.
//
// A map is (N, S, C): images, positions, channels. Batch norm in training takes a batch for one image.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define MASKS  // the first values of a vector are read and written alone by one instruction
#endif

#ifdef __AVX512F__
constexpr int L = 16;  // floats in a vector
#else
constexpr int L = 8;
#endif
constexpr int64_t CHUNK = 32 * 1024;  // values of a chunk: they stay in the second-level cache
constexpr int64_t RUN = 64;           // rows that are added up before their sum is: a float32 sum of thousands loses digits

typedef float Vector __attribute__((vector_size(L * sizeof(float))));
typedef uint32_t Bits __attribute__((vector_size(L * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(L * sizeof(uint16_t))));

#ifdef MASKS
static inline __mmask16 lanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
static inline Vector read_some(const float* p, int64_t n) { return (Vector)_mm512_maskz_loadu_ps(lanes(n), p); }
static inline Halves read_some(const uint16_t* p, int64_t n) { return (Halves)_mm256_maskz_loadu_epi16(lanes(n), p); }
static inline void write_some(float* p, Vector v, int64_t n) { _mm512_mask_storeu_ps(p, lanes(n), (__m512)v); }
static inline void write_some(uint16_t* p, Halves h, int64_t n) { _mm256_mask_storeu_epi16(p, lanes(n), (__m256i)h); }
#else
static inline Vector read_some(const float* p, int64_t n) {
    Vector v = {};
    std::memcpy(&v, p, n * sizeof(float));
    return v;
}
static inline Halves read_some(const uint16_t* p, int64_t n) {
    Halves h = {};
    std::memcpy(&h, p, n * sizeof(uint16_t));
    return h;
}
static inline void write_some(float* p, Vector v, int64_t n) { std::memcpy(p, &v, n * sizeof(float)); }
static inline void write_some(uint16_t* p, Halves h, int64_t n) { std::memcpy(p, &h, n * sizeof(uint16_t)); }
#endif

static inline Vector load(const float* p, int64_t n) {  // the first n values, then zeros
    if (n < L) return read_some(p, n);
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float* p, Vector v, int64_t n) {
    if (n < L) return write_some(p, v, n);
    std::memcpy(p, &v, sizeof v);
}

static inline Vector load(const uint16_t* p, int64_t n) {  // bfloat16: the upper half of a float32
    Halves h;
    if (n < L) h = read_some(p, n);
    else std::memcpy(&h, p, sizeof h);
    return (Vector)(__builtin_convertvector(h, Bits) << 16);
}
static inline void store(uint16_t* p, Vector v, int64_t n) {  // rounded to nearest, ties to even
    const Bits b = (Bits)v, rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
    const Bits nan = (b >> 16) | 0x40;  // stays one
    const Halves h = __builtin_convertvector(v == v ? rounded : nan, Halves);
    if (n < L) return write_some(p, h, n);
    std::memcpy(p, &h, sizeof h);
}

static inline Vector activated(Vector z, float slope) { return z > 0 ? z : z * slope; }

struct Shape {
    int64_t images, positions, channels;
    float eps, slope;

    int64_t rows() const { return std::max<int64_t>(1, CHUNK / channels); }  // of a chunk
    int64_t chunks() const { return (positions + rows() - 1) / rows(); }
};

// f(c, n) for every vector of channels, n of them valid
template <typename F>
static inline void over_channels(int64_t channels, F f) {
    int64_t c = 0;
    for (; c + L <= channels; c += L) f(c, static_cast<int64_t>(L));
    if (c < channels) f(c, channels - c);
}

// f(image, chunk, first row, last row) for every chunk, on all threads
template <typename F>
static void over_chunks(const Shape& s, int64_t threads, F f) {
    const int64_t chunks = s.chunks(), rows = s.rows();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < s.images * chunks; ++i) {
        const int64_t chunk = i % chunks, first = chunk * rows;
        f(i / chunks, chunk, first, std::min(s.positions, first + rows));
    }
}

// The sums of all chunks of an image and channel: parts (images, chunks, 2, channels)
static inline double total(const Shape& s, const float* parts, int64_t image, int64_t which, int64_t c) {
    double sum = 0;
    for (int64_t k = 0; k < s.chunks(); ++k) sum += parts[((image * s.chunks() + k) * 2 + which) * s.channels + c];
    return sum;
}

template <typename T>
static void forward(const Shape& s, const T* x, const float* weight, const float* bias, T* y, float* mean, float* scale,
                    float* variances, float* parts, int64_t threads) {
    const int64_t C = s.channels;
    over_chunks(s, threads, [&](int64_t image, int64_t chunk, int64_t first, int64_t last) {
        const T* from = x + image * s.positions * C;
        float* to = parts + (image * s.chunks() + chunk) * 2 * C;
        over_channels(C, [&](int64_t c, int64_t n) {
            const Vector pivot = load(from + c, n);  // a value of the channel: squares of what differs from it lose nothing
            Vector sum = {}, squares = {};
            for (int64_t run = first; run < last; run += RUN) {
                Vector some = {}, some_squares = {};
                for (int64_t r = run; r < std::min(run + RUN, last); ++r) {
                    const Vector d = load(from + r * C + c, n) - pivot;
                    some += d;
                    some_squares += d * d;
                }
                sum += some;
                squares += some_squares;
            }
            store(to + c, sum, n);
            store(to + C + c, squares, n);
        });
    });
    for (int64_t image = 0; image < s.images; ++image)
        for (int64_t c = 0; c < C; ++c) {
            const double m = total(s, parts, image, 0, c) / s.positions;
            const double variance = std::max(0.0, total(s, parts, image, 1, c) / s.positions - m * m);
            const T* pivot = x + image * s.positions * C + c;
            mean[image * C + c] = static_cast<float>(m + load(pivot, 1)[0]);
            variances[image * C + c] = static_cast<float>(variance);
            scale[image * C + c] = static_cast<float>(1 / std::sqrt(variance + s.eps));
        }
    over_chunks(s, threads, [&](int64_t image, int64_t, int64_t first, int64_t last) {
        const T* from = x + image * s.positions * C;
        T* to = y + image * s.positions * C;
        over_channels(C, [&](int64_t c, int64_t n) {
            const Vector m = load(mean + image * C + c, n), a = load(weight + c, n) * load(scale + image * C + c, n);
            const Vector b = load(bias + c, n);
            for (int64_t r = first; r < last; ++r)
                store(to + r * C + c, activated((load(from + r * C + c, n) - m) * a + b, s.slope), n);
        });
    });
}

template <typename T>
static void backward(const Shape& s, const T* x, const T* dy, const float* weight, const float* bias, const float* mean,
                     const float* scale, T* dx, float* dw, float* db, float* parts, int64_t threads) {
    const int64_t C = s.channels;
    // of one image, chunk and vector of channels: f(row, the normalised value, the gradient before the activation)
    const auto slopes = [&](int64_t image, int64_t c, int64_t n, int64_t first, int64_t last, auto f) {
        const Vector m = load(mean + image * C + c, n), a = load(scale + image * C + c, n);
        const Vector w = load(weight + c, n), b = load(bias + c, n);
        for (int64_t r = first; r < last; ++r) {
            const int64_t at = (image * s.positions + r) * C + c;
            const Vector normal = (load(x + at, n) - m) * a, g = load(dy + at, n);
            f(at, normal, normal * w + b > 0 ? g : g * s.slope);
        }
    };
    over_chunks(s, threads, [&](int64_t image, int64_t chunk, int64_t first, int64_t last) {
        float* to = parts + (image * s.chunks() + chunk) * 2 * C;
        over_channels(C, [&](int64_t c, int64_t n) {
            Vector sum = {}, product = {};
            for (int64_t run = first; run < last; run += RUN) {
                Vector some = {}, some_product = {};
                slopes(image, c, n, run, std::min(run + RUN, last), [&](int64_t, Vector normal, Vector g) {
                    some += g;
                    some_product += g * normal;
                });
                sum += some;
                product += some_product;
            }
            store(to + c, sum, n);
            store(to + C + c, product, n);
        });
    });
    for (int64_t c = 0; c < C; ++c) {
        double all = 0, product = 0;
        for (int64_t image = 0; image < s.images; ++image) {
            const double one = total(s, parts, image, 0, c), two = total(s, parts, image, 1, c);
            all += one;
            product += two;
            float* means = parts + image * s.chunks() * 2 * C + c;  // the first chunk's place, which is read no more
            means[0] = static_cast<float>(one / s.positions);
            means[C] = static_cast<float>(two / s.positions);
        }
        db[c] = static_cast<float>(all);
        dw[c] = static_cast<float>(product);
    }
    over_chunks(s, threads, [&](int64_t image, int64_t, int64_t first, int64_t last) {
        const float* means = parts + image * s.chunks() * 2 * C;
        over_channels(C, [&](int64_t c, int64_t n) {
            const Vector a = load(weight + c, n) * load(scale + image * C + c, n);
            const Vector mean_g = load(means + c, n), mean_product = load(means + C + c, n);
            slopes(image, c, n, first, last, [&](int64_t at, Vector normal, Vector g) {
                store(dx + at, a * (g - mean_g - normal * mean_product), n);
            });
        });
    });
}

extern "C" {

// Floats of working space
int64_t ulna_norm_parts(const Shape* s) { return s->images * s->chunks() * 2 * s->channels; }

#define EXPORT(T, NAME)                                                                                              \
    void ulna_norm_forward_##NAME(const Shape* s, const T* x, const float* weight, const float* bias, T* y,          \
                                  float* mean, float* scale, float* variance, float* parts, int64_t threads) {       \
        forward(*s, x, weight, bias, y, mean, scale, variance, parts, threads);                                      \
    }                                                                                                                \
    void ulna_norm_backward_##NAME(const Shape* s, const T* x, const T* dy, const float* weight, const float* bias,  \
                                   const float* mean, const float* scale, T* dx, float* dw, float* db, float* parts, \
                                   int64_t threads) {                                                                \
        backward(*s, x, dy, weight, bias, mean, scale, dx, dw, db, parts, threads);                                  \
    }

EXPORT(float, f32)
EXPORT(uint16_t, bf16)
}
