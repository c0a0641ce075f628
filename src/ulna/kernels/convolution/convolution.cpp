// Convolution with a 3x3 kernel in the plane, stride 1 and padding 1, in float32 and channels last: Winograd F(4x4, 3x3).
//
// A tile of 4x4 outputs needs 36 products per pair of channels instead of 144. Tiles are worked on in blocks, so that a
// block stays in the second-level cache between the three steps: transform 6x6 inputs, 36 small matrix products,
// transform back. A kernel of depth 3 (3x3x3) adds the products of three neighbouring slices before the way back.
// Source: Fast Algorithms for Convolutional Neural Networks (lavin2016), Sec. 4.
//
// Layouts, all contiguous: maps (N, D, H, W, C), with D = 1 for images; transformed weights (depth, 36, panels, C, P): the
// output channels lie in panels of P, the last one filled up with zeros. Channels may be spread over several maps, which
// are read, or written, where they lie: nothing is concatenated. Every output of the forward pass is one sum in one fixed
// order: it does not depend on the number of threads, on the batch, or on where in a block a tile lies. The gradient of
// the weights is a sum over threads, so its last bits go with their number.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef __AVX512F__
constexpr int L = 16;  // floats in a vector
constexpr int R = 12;  // rows of a product that stay in registers
#else
constexpr int L = 8;
constexpr int R = 6;
#endif
constexpr int P = 2 * L;                        // columns of a product that stay in registers
constexpr int64_t T = 4, I = 6, F = I * I;      // side of an output and of an input tile; products a tile needs
constexpr int64_t RUN = 64;                     // channels whose products are summed by themselves before they join the whole sum
constexpr int64_t CACHE = 96 * 1024;            // floats of one block: under half of a usual second-level cache

typedef float Vector __attribute__((vector_size(L * sizeof(float)), aligned(4), may_alias));

typedef double Wide __attribute__((vector_size(L * sizeof(double))));  // as many numbers

static inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
static inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }

static inline Vector load_some(const float* p, int64_t n) {  // the first n floats, then zeros
    if (n >= L) return load(p);
    float lanes[L] = {};
    std::memcpy(lanes, p, n * sizeof(float));
    return load(lanes);
}

static inline void store_some(float* p, Vector v, int64_t n) {
    if (n >= L) return store(p, v);
    float lanes[L];
    store(lanes, v);
    std::memcpy(p, lanes, n * sizeof(float));
}

struct Buffer {  // zeros, aligned, of one thread
    float* data;
    explicit Buffer(int64_t floats) {
        const int64_t bytes = (floats * 4 + 63) / 64 * 64;
        data = static_cast<float*>(std::aligned_alloc(64, bytes));
        if (!data) std::abort();
        std::memset(data, 0, bytes);
    }
    ~Buffer() { std::free(data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
};

struct Shape {
    int64_t images, slices, height, width, channels, outputs, depth;

    int64_t rows() const { return (height + T - 1) / T; }
    int64_t columns() const { return (width + T - 1) / T; }
    int64_t tiles() const { return images * slices * rows() * columns(); }
    int64_t padded_channels() const { return (channels + L - 1) / L * L; }
    int64_t panels() const { return (outputs + P - 1) / P; }
    int64_t padded_outputs() const { return panels() * P; }
    int64_t block(int64_t threads) const {  // tiles in a block: what the cache holds, and work for every thread
        const int64_t held = std::clamp(CACHE / (F * (padded_channels() + padded_outputs())) / R, int64_t(2), int64_t(8));
        const int64_t share = (tiles() + threads * R - 1) / (threads * R);
        return R * std::max(int64_t(1), std::min(held, share));
    }
};

template <typename Float>
struct Maps {  // one map, or several of the same size side by side
    int64_t count;
    Float* const* data;
    const int64_t* channels;
};

struct Place {  // where a tile begins
    int64_t slice, z, y, x;  // slice counts through all images
    Place(const Shape& s, int64_t tile) {
        x = tile % s.columns() * T;
        y = tile / s.columns() % s.rows() * T;
        slice = tile / (s.columns() * s.rows());
        z = slice % s.slices;
    }
};

// The transforms multiply polynomials by their values at six points. With 0, +-1/sqrt(2), +-sqrt(2) and infinity, whose
// products and sums are as near to 1 as can be, a third to a half of the error of 0, +-1, +-2 and infinity is left, at the
// same cost. Constants of a transform and of its transpose are named alike.
constexpr float NEAR = 0.70710678f, FAR = 1.41421356f;  // the points; their squares are 1/2 and 2
constexpr float NEAR3 = 0.35355339f, FAR3 = 2.82842712f;  // and cubes

// B^T d along one line of six
static inline void into(Vector* v, int64_t step) {
    const Vector a = v[0], b = v[step], c = v[2 * step], d = v[3 * step], e = v[4 * step], f = v[5 * step];
    v[0] = a - 2.5f * c + e;
    Vector even = e - 2 * c, odd = NEAR * (d - 2 * b);
    v[step] = even + odd;
    v[2 * step] = even - odd;
    even = e - 0.5f * c;
    odd = FAR * (d - 0.5f * b);
    v[3 * step] = even + odd;
    v[4 * step] = even - odd;
    v[5 * step] = b - 2.5f * d + f;
}

// A^T m: six to four
static inline void back(const Vector* m, int64_t step, Vector* out, int64_t out_step) {
    const Vector sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
    const Vector far_sum = m[3 * step] + m[4 * step], far_difference = m[3 * step] - m[4 * step];
    out[0] = m[0] + sum + far_sum;
    out[out_step] = NEAR * difference + FAR * far_difference;
    out[2 * out_step] = 0.5f * sum + 2 * far_sum;
    out[3 * out_step] = NEAR3 * difference + FAR3 * far_difference + m[5 * step];
}

// A e: four to six, the transpose of `back`
static inline void spread(const Vector* e, int64_t step, Vector* out, int64_t out_step) {
    const Vector a = e[0], b = e[step], c = e[2 * step], d = e[3 * step];
    Vector even = a + 0.5f * c, odd = NEAR * b + NEAR3 * d;
    out[0] = a;
    out[out_step] = even + odd;
    out[2 * out_step] = even - odd;
    even = a + 2 * c;
    odd = FAR * b + FAR3 * d;
    out[3 * out_step] = even + odd;
    out[4 * out_step] = even - odd;
    out[5 * out_step] = d;
}

// G g: three to six, in double precision: weights are few, and every rounding here would be in all outputs
static inline void widen(const Wide* g, int64_t step, Wide* out, int64_t out_step) {
    constexpr double near = 0.70710678118654752, far = 1.41421356237309505;
    const Wide a = g[0], b = g[step], c = g[2 * step];
    const Wide even = (a + c * 0.5) * (-1 / 1.5), far_even = (a + 2 * c) * (1 / 6.0);
    out[0] = a;
    out[out_step] = even - b * (near / 1.5);
    out[2 * out_step] = even + b * (near / 1.5);
    out[3 * out_step] = far_even + b * (far / 6);
    out[4 * out_step] = far_even - b * (far / 6);
    out[5 * out_step] = c;
}

// G^T u: six to three, the transpose of `widen`
static inline void narrow(const Wide* u, int64_t step, Wide* out, int64_t out_step) {
    constexpr double near = 0.70710678118654752, far = 1.41421356237309505;
    const Wide sum = u[step] + u[2 * step], difference = u[2 * step] - u[step];
    const Wide far_sum = u[3 * step] + u[4 * step], far_difference = u[3 * step] - u[4 * step];
    out[0] = u[0] - sum * (1 / 1.5) + far_sum * (1 / 6.0);
    out[out_step] = difference * (near / 1.5) + far_difference * (far / 6);
    out[2 * out_step] = (far_sum - sum) * (1 / 3.0) + u[5 * step];
}

// One vector of channels of a tile, transformed; `some` floats of it, all of them unless `tail`
template <bool tail>
static inline void transform_pixels(const float* const* pixel, int64_t c, int64_t some, float* out, int64_t step) {
    Vector d[F];
    for (int64_t j = 0; j < I; ++j) {
        for (int64_t i = 0; i < I; ++i) {
            const float* from = pixel[i * I + j] + c;
            d[i * I + j] = tail ? load_some(from, some) : load(from);
        }
        into(d + j, I);
    }
    for (int64_t i = 0; i < I; ++i) {
        into(d + i * I, 1);
        for (int64_t j = 0; j < I; ++j, out += step) {
            if (tail) store_some(out, d[i * I + j], some);
            else store(out, d[i * I + j]);
        }
    }
}

// `count` tiles from `first`, of the slice `dz` further on: v (36, block, padded channels); zeros outside the maps
static void transform_input(const Shape& s, const Maps<const float>& x, int64_t first, int64_t count, int64_t dz,
                            int64_t block, const float* zeros, float* v) {
    const int64_t padded = s.padded_channels(), step = block * padded;
    for (int64_t t = 0; t < count; ++t) {
        const Place at(s, first + t);
        const bool slice_inside = at.z + dz >= 0 && at.z + dz < s.slices;
        float* out = v + t * padded;
        for (int64_t map = 0; map < x.count; ++map) {
            const int64_t channels = x.channels[map];
            const float* pixel[F];
            for (int64_t i = 0; i < I; ++i)
                for (int64_t j = 0; j < I; ++j) {
                    const int64_t row = at.y + i - 1, column = at.x + j - 1;
                    const bool inside = slice_inside && row >= 0 && row < s.height && column >= 0 && column < s.width;
                    const int64_t offset = ((at.slice + dz) * s.height + row) * s.width + column;
                    pixel[i * I + j] = inside ? x.data[map] + offset * channels : zeros;
                }
            int64_t c = 0;
            for (; c + L <= channels; c += L) {
                if (c % 16 == 0)  // 36 streams are more than a processor follows by itself: fetch the next tile's pixels
                    for (int64_t i = 0; i < I; ++i)
                        for (int64_t j = I - T; j < I; ++j) __builtin_prefetch(pixel[i * I + j] + T * channels + c);
                transform_pixels<false>(pixel, c, L, out + c, step);
            }
            if (c < channels) transform_pixels<true>(pixel, c, channels - c, out + c, step);
            out += channels;
        }
    }
}

// The way back: m (36, block, padded outputs) -> the tile's pixels in the maps of y. An infinite value or a NaN spoils its
// whole tile, also what does not see it: images with such a tile are marked.
static void transform_output(const Shape& s, const float* m, const float* bias, int64_t first, int64_t count, int64_t block,
                             const Maps<float>& y, char* spoilt) {
    const int64_t padded = s.padded_outputs();
    for (int64_t t = 0; t < count; ++t) {
        const Place at(s, first + t);
        const int64_t corner = (at.slice * s.height + at.y) * s.width + at.x;
        const int64_t rows = std::min(T, s.height - at.y), columns = std::min(T, s.width - at.x);
        int64_t from = 0;
        Vector nothing = {};  // stays 0 as long as all values are finite
        for (int64_t map = 0; map < y.count; from += y.channels[map++]) {
            const int64_t channels = y.channels[map];
            for (int64_t k = 0; k < channels; k += L) {
                Vector d[F], half[T * I], o[T * T];
                for (int64_t f = 0; f < F; ++f) d[f] = load(m + (f * block + t) * padded + from + k);
                for (int64_t j = 0; j < I; ++j) back(d + j, I, half + j, I);
                for (int64_t i = 0; i < T; ++i) back(half + i * I, 1, o + i * T, 1);
                for (int64_t i = 0; i < T * T; ++i) nothing += o[i] * 0;
                const Vector shift = bias ? load_some(bias + from + k, channels - k) : Vector{};
                for (int64_t i = 0; i < rows; ++i)
                    for (int64_t j = 0; j < columns; ++j)
                        store_some(y.data[map] + (corner + i * s.width + j) * channels + k, o[i * T + j] + shift, channels - k);
            }
        }
        bool finite = true;
        for (int l = 0; l < L; ++l) finite &= nothing[l] == 0;
        if (!finite) __atomic_store_n(spoilt + at.slice / s.slices, char(1), __ATOMIC_RELAXED);
    }
}

// Gradients of `count` tiles, transformed: e (36, block, padded outputs)
static void transform_gradient(const Shape& s, const float* dy, int64_t first, int64_t count, int64_t block,
                               const float* zeros, float* e) {
    const float* pixel[T * T];
    for (int64_t t = 0; t < count; ++t) {
        const Place at(s, first + t);
        for (int64_t i = 0; i < T; ++i)
            for (int64_t j = 0; j < T; ++j) {
                const bool inside = at.y + i < s.height && at.x + j < s.width;
                pixel[i * T + j] =
                    inside ? dy + ((at.slice * s.height + at.y + i) * s.width + at.x + j) * s.outputs : zeros;
            }
        for (int64_t k = 0; k < s.outputs; k += L) {
            Vector g[T * T], half[I * T], o[F];
            for (int64_t i = 0; i < T * T; ++i) g[i] = load_some(pixel[i] + k, s.outputs - k);
            for (int64_t j = 0; j < T; ++j) spread(g + j, T, half + j, T);
            for (int64_t i = 0; i < I; ++i) spread(half + i * T, 1, o + i * I, 1);
            for (int64_t f = 0; f < F; ++f) store(e + (f * block + t) * s.padded_outputs() + k, o[f]);
        }
    }
}

// c (rows, P) = or += a (rows, depth) b (depth, P)
template <int rows>
static inline void product(int64_t depth, const float* a, int64_t a_row, int64_t a_next, const float* b, int64_t b_next,
                           float* c, int64_t c_row, bool add) {
    Vector sum[rows][2];
    for (int r = 0; r < rows; ++r)
        for (int h = 0; h < 2; ++h) sum[r][h] = Vector{};
    for (int64_t k = 0; k < depth; ++k, a += a_next, b += b_next) {
        const Vector left = load(b), right = load(b + L);
        for (int r = 0; r < rows; ++r) {
            sum[r][0] += a[r * a_row] * left;
            sum[r][1] += a[r * a_row] * right;
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int h = 0; h < 2; ++h) {
            float* to = c + r * c_row + h * L;  // a sum of sums loses fewer digits than a long one
            store(to, add ? load(to) + sum[r][h] : sum[r][h]);
        }
}

// The same for up to `most` rows
template <int most = R>
static inline void product_of(int64_t rows, int64_t depth, const float* a, int64_t a_row, int64_t a_next, const float* b,
                              int64_t b_next, float* c, int64_t c_row, bool add) {
    if constexpr (most > 1) {
        if (rows < most) return product_of<most - 1>(rows, depth, a, a_row, a_next, b, b_next, c, c_row, add);
    }
    product<most>(depth, a, a_row, a_next, b, b_next, c, c_row, add);
}

extern "C" {

// Floats of the transformed weights
int64_t ulna_conv_packed(const Shape* shape) {
    return shape->depth * F * shape->panels() * shape->channels * P;
}

// Floats of one share of the transformed gradient of the weights
int64_t ulna_conv_share(const Shape* shape) { return shape->depth * F * shape->channels * shape->padded_outputs(); }

// How many of `threads` threads have work in ulna_conv_weight_gradient
int64_t ulna_conv_busy(const Shape* shape, int64_t threads) {
    const int64_t block = 2 * shape->block(threads);
    return std::min(threads, (shape->tiles() + block - 1) / block);
}

// w (K, C, depth, 3, 3) -> u; `transposed`: the weights that bring gradients back to the input, from w (C, K, depth, 3, 3)
void ulna_conv_pack(const Shape* shape, const float* w, float* u, int transposed) {
    const Shape& s = *shape;
    const int64_t taps = s.depth * 9;
    const int64_t output_step = transposed ? taps : s.channels * taps, channel_step = transposed ? s.outputs * taps : taps;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t p = 0; p < s.panels(); ++p)
        for (int64_t c = 0; c < s.channels; ++c)
            for (int64_t dz = 0; dz < s.depth; ++dz) {
                float g[9][P] = {};
                for (int64_t k = 0; k < std::min<int64_t>(P, s.outputs - p * P); ++k)
                    for (int64_t tap = 0; tap < 9; ++tap) {
                        const int64_t here = dz * 9 + tap;
                        g[tap][k] = w[(p * P + k) * output_step + c * channel_step + (transposed ? taps - 1 - here : here)];
                    }
                for (int half = 0; half < P; half += L) {
                    Wide v[9], wide[I * 3], out[F];
                    for (int tap = 0; tap < 9; ++tap) v[tap] = __builtin_convertvector(load(g[tap] + half), Wide);
                    for (int j = 0; j < 3; ++j) widen(v + j, 3, wide + j, 3);
                    for (int64_t i = 0; i < I; ++i) widen(wide + i * 3, 1, out + i * I, 1);
                    for (int64_t f = 0; f < F; ++f)
                        store(u + (((dz * F + f) * s.panels() + p) * s.channels + c) * P + half,
                              __builtin_convertvector(out[f], Vector));
                }
            }
}

// y = x * w + bias; bias may be null. spoilt (images): zeros before; 1 for an image with a value that is not finite
void ulna_conv_forward(const Shape* shape, const Maps<const float>* x, const float* u, const float* bias,
                       const Maps<float>* y, char* spoilt, int64_t threads) {
    const Shape& s = *shape;
    const int64_t channels = s.padded_channels(), outputs = s.padded_outputs();
    const int64_t block = s.block(threads), blocks = (s.tiles() + block - 1) / block;
#pragma omp parallel num_threads(threads)
    {
        // a vector more: the last channels of a map are read as a whole vector, wherever they lie
        const Buffer zeros(channels), v(F * block * channels), m(F * block * outputs + L);
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks; ++b) {
            const int64_t first = b * block, count = std::min(block, s.tiles() - first);
            for (int64_t dz = 0; dz < s.depth; ++dz) {
                transform_input(s, *x, first, count, dz - s.depth / 2, block, zeros.data, v.data);
                for (int64_t f = 0; f < F; ++f)
                    for (int64_t p = 0; p < s.panels(); ++p)
                        for (int64_t c = 0; c < s.channels; c += RUN)
                            for (int64_t t = 0; t < count; t += R)
                                product_of(std::min<int64_t>(R, count - t), std::min(RUN, s.channels - c),
                                           v.data + (f * block + t) * channels + c, channels, 1,
                                           u + (((dz * F + f) * s.panels() + p) * s.channels + c) * P, P,
                                           m.data + (f * block + t) * outputs + p * P, outputs, dz + c > 0);
            }
            transform_output(s, m.data, bias, first, count, block, *y, spoilt);
        }
    }
}

// dw (K, C, depth, 3, 3) from x and dy; `shares` holds `threads` times ulna_conv_share floats of working space. Returns
// whether all of it is finite
int64_t ulna_conv_weight_gradient(const Shape* shape, const Maps<const float>* x, const float* dy, float* shares, float* dw,
                               int64_t threads) {
    const Shape& s = *shape;
    const int64_t channels = s.padded_channels(), outputs = s.padded_outputs(), size = ulna_conv_share(shape);
    const int64_t block = 2 * s.block(threads), blocks = (s.tiles() + block - 1) / block;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (int64_t share = 0; share < threads; ++share) {  // fixed shares, added in a fixed order: the same bits every time
        float* du = shares + share * size;
        std::memset(du, 0, size * sizeof(float));
        const Buffer zeros(std::max(channels, outputs)), v(F * block * channels), e(F * block * outputs);
        for (int64_t b = blocks * share / threads; b < blocks * (share + 1) / threads; ++b) {
            const int64_t first = b * block, count = std::min(block, s.tiles() - first);
            transform_gradient(s, dy, first, count, block, zeros.data, e.data);
            for (int64_t dz = 0; dz < s.depth; ++dz) {
                transform_input(s, *x, first, count, dz - s.depth / 2, block, zeros.data, v.data);
                for (int64_t f = 0; f < F; ++f)
                    for (int64_t p = 0; p < s.panels(); ++p)
                        for (int64_t c = 0; c < s.channels; c += R)
                            product_of(std::min<int64_t>(R, s.channels - c), count, v.data + f * block * channels + c, 1,
                                       channels, e.data + f * block * outputs + p * P, outputs,
                                       du + ((dz * F + f) * s.channels + c) * outputs + p * P, outputs, true);
            }
        }
    }
    int64_t odd = 0;
#pragma omp parallel for collapse(2) schedule(static) reduction(+ : odd)
    for (int64_t dz = 0; dz < s.depth; ++dz)
        for (int64_t c = 0; c < s.channels; ++c)
            for (int64_t k = 0; k < s.outputs; k += L) {
                Wide u[F], half[3 * I], g[9];
                for (int64_t f = 0; f < F; ++f) {
                    const float* from = shares + ((dz * F + f) * s.channels + c) * outputs + k;
                    Vector sum = load(from);
                    for (int64_t share = 1; share < threads; ++share) sum += load(from + share * size);
                    u[f] = __builtin_convertvector(sum, Wide);
                }
                for (int64_t j = 0; j < I; ++j) narrow(u + j, I, half + j, I);
                for (int64_t i = 0; i < 3; ++i) narrow(half + i * I, 1, g + i * 3, 1);
                Vector made[9], nothing = {};
                for (int64_t tap = 0; tap < 9; ++tap) {
                    made[tap] = __builtin_convertvector(g[tap], Vector);
                    nothing += made[tap] * 0;
                }
                for (int64_t lane = 0; lane < std::min<int64_t>(L, s.outputs - k); ++lane) {
                    odd += nothing[lane] != 0;
                    for (int64_t tap = 0; tap < 9; ++tap)
                        dw[(((k + lane) * s.channels + c) * s.depth + dz) * 9 + tap] = made[tap][lane];
                }
            }
    return odd == 0;
}
}
