// 8 sketch, few columns: y = W x in one launch. z never leaves shared memory.
//
// With a few columns there is next to no work: what counts is that everything is under way at once. A block owns one
// strip, a tile of its outputs, and a part of its panels.
// Who computes what: first all threads start to copy what the block needs of those panels to shared memory: the inputs,
// the lists of the bins (sketch.cuh), the buckets. Then 2^shift lanes sum up the inputs of one bin: z. Then a thread
// owns VECTOR neighbouring outputs, 16 bytes of every window, and every so many bins: one 16-byte read, and VECTOR
// multiply-adds a column. The threads that share outputs add their sums up in shared memory, and the blocks that share
// them as split.cuh does: always in one order.
// What to see: no read waits for another one, so that the latency of memory is paid once. A strip's panels follow each
// other in w, in the lists and in x: each copy is one run of 16-byte pieces. Windows that overlap are read from memory
// once. If tiles of outputs are low there are enough blocks without a split of the panels, and nobody has to meet; but
// each computes z anew: additions are cheap.
//
// Launch: 32 * WARPS threads in a 1-D block; a 1-D grid: strips, tiles of outputs, parts (fastest). Dynamic shared
// memory: of `many` panels, each rounded up to 16 bytes: the inputs; the lists; TILE_COLS floats a bin; 4 bytes a bin;
// the lists' starts; the buckets. At least what the sums take: 4 * (VECTOR * (COLUMNS * rows / VECTOR + 4) * sharers +
// THREADS) bytes, with THREADS / (rows / VECTOR) sharers, up to SHARERS.
//     layout    where each weight is stored; blocks are one column wide
//     w_k       (buckets)
//     x_dn      (cols, n): element (j, s) at j * x_down + s * x_across; n <= TILE_COLS. If that is 1, x_down is too
//     starts, entries, bins, capacity   the lists, as sketch_lists wrote them
//     y_mn      (rows, n), C order, written in full
//     part_pmn, arrived_t   for split.cuh: (parts, rows, n), any values, and (strips * tiles), zeros. Null if parts = 1
//     rows      outputs of a tile, a multiple of VECTOR, at most VECTOR * THREADS
//     parts     blocks that share an output, at most the panels across
//     many      panels at once
//     shift     2^shift lanes share a bin, up to 32
#include "ptx.cuh"
#include "sketch.cuh"
#include "split.cuh"

#ifndef WARPS
#define WARPS 16
#define TILE_COLS 8
#endif
#define THREADS (32 * WARPS)
#define RESIDENT (TILE_COLS > 1 ? 512 / THREADS : 1024 / THREADS)  // blocks on a multiprocessor at once
#define COLUMNS (TILE_COLS < 4 ? TILE_COLS : 4)         // whose sums meet in shared memory at a time
#define EACH (TILE_COLS < VECTOR ? TILE_COLS : VECTOR)  // columns of a bin that a thread sums up: 16 bytes at most
#define SHARERS 64                                      // most threads that share outputs

template <int COUNT, class T> struct alignas(COUNT * sizeof(T)) Run {
    T v[COUNT];
};

// What Layout says of a panel. An index that is known only at run time would have all of it copied to local memory.
template <class T> __device__ __forceinline__ int of_panel(const T (&all)[2][2], bool lower, bool narrower) {
    const T wide = lower ? all[1][0] : all[0][0], narrow = lower ? all[1][1] : all[0][1];
    return (int)(narrower ? narrow : wide);
}

// Start to copy a run of `count` elements, BYTES at a time if it begins at a multiple of that.
template <int BYTES, class T>
__device__ __forceinline__ void copy_run(T* to, const T* from, int count) {
    const int each = BYTES / (int)sizeof(T), pieces = (size_t)from % BYTES == 0 ? count / each : 0;
    for (int k = threadIdx.x; k < pieces; k += THREADS) cp_async<BYTES>(&to[k * each], &from[k * each]);
#pragma unroll 4
    for (int k = pieces * each + threadIdx.x; k < count; k += THREADS) to[k] = from[k];
}

// x_tile[k][c] = from[k * x_down + c * x_across], 0 for columns c >= n. Where inputs are neighbours and begin at a
// 16-byte boundary, VECTOR of one column at a time.
__device__ __forceinline__ void spread_inputs(
    WEIGHT* x_tile, const WEIGHT* from, long long x_down, long long x_across, int inputs, int n) {
    const bool aligned = x_down == 1 && (size_t)from % 16 == 0 && x_across % VECTOR == 0;
    const int pieces = aligned ? inputs / VECTOR : 0, first = pieces * VECTOR, rest = inputs - first;
#pragma unroll SLICE_LOADS
    for (int e = threadIdx.x; e < pieces * TILE_COLS; e += THREADS) {
        const int k = e / TILE_COLS * VECTOR, c = e % TILE_COLS;
        Run<VECTOR, WEIGHT> piece = {};
        if (c < n) piece = *reinterpret_cast<const Run<VECTOR, WEIGHT>*>(&from[c * x_across + k]);
#pragma unroll
        for (int q = 0; q < VECTOR; ++q) x_tile[(k + q) * TILE_COLS + c] = piece.v[q];
    }
#pragma unroll 4
    for (int e = threadIdx.x; e < rest * TILE_COLS; e += THREADS) {
        const int k = first + (x_across == 1 ? e / TILE_COLS : e % rest), c = x_across == 1 ? e % TILE_COLS : e / rest;
        x_tile[k * TILE_COLS + c] = c < n ? from[k * x_down + c * x_across] : WEIGHT(0.0f);
    }
}

// Of a bin, the sum of the inputs in every 2^shift-th group of its list, from the lane's on: EACH columns of x_tile.
__device__ __forceinline__ void sum_bin(
    float (&sum)[EACH], const uint2* list, int group, int end, int shift, const WEIGHT* x_tile, int width) {
    for (; group < end; group += 1 << shift) {
        const uint2 four = list[group];
        const unsigned entry[GROUP] = {four.x & 0xffff, four.x >> 16, four.y & 0xffff, four.y >> 16};
        Run<EACH, WEIGHT> x[GROUP];
#pragma unroll
        for (int e = 0; e < GROUP; ++e) {
            const int input = min((int)(entry[e] & ENTRY_INPUT), width - 1);
            x[e] = *reinterpret_cast<const Run<EACH, WEIGHT>*>(&x_tile[input * TILE_COLS]);
        }
#pragma unroll
        for (int e = 0; e < GROUP; ++e) {
            const bool filled = (int)(entry[e] & ENTRY_INPUT) >= width;
#pragma unroll
            for (int c = 0; c < EACH; ++c) {
                const float v = filled ? 0.0f : to_float(x[e].v[c]);
                sum[c] += entry[e] & ENTRY_MINUS ? -v : v;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) sketch_few(
    const Layout layout, const WEIGHT* __restrict__ w_k,
    const WEIGHT* __restrict__ x_dn, const long long x_down, const long long x_across,
    const unsigned short* __restrict__ starts, const unsigned short* __restrict__ entries, const int bins,
    const int capacity, WEIGHT* __restrict__ y_mn, const int n, float* __restrict__ part_pmn,
    unsigned* __restrict__ arrived_t, const int rows, const int parts, const int many, const int shift) {
    extern __shared__ __align__(16) unsigned char memory[];
    __shared__ int last;

    const int across = panels_across(layout), strip_rows = min(BLOCK_ROWS, layout.rows);
    const int tiles = (strip_rows - 1) / rows + 1;
    const int part = blockIdx.x % parts, tile = blockIdx.x / parts % tiles, strip = blockIdx.x / parts / tiles;
    const long long cut = across;  // its product with a part may be long
    const Split split = {part, parts, (int)(cut * part / parts), (int)(cut * (part + 1) / parts)};
    const Meeting meeting = {part_pmn, arrived_t, y_mn, layout.rows, n};
    const bool aligned = BLOCK_ROWS % VECTOR == 0 && STRIDE % VECTOR == 0;

    const int max_width = panel_width(layout);
    const auto up = [](int bytes) { return (bytes + 15) / 16 * 16; };
    unsigned char* at = memory;
    WEIGHT* x_tile = reinterpret_cast<WEIGHT*>(at);                  // [input][TILE_COLS]
    at += up(many * max_width * TILE_COLS * (int)sizeof(WEIGHT));
    unsigned short* list = reinterpret_cast<unsigned short*>(at);    // [panel][capacity]
    at += up(many * capacity * 2);
    float* z = reinterpret_cast<float*>(at);                         // [bin][TILE_COLS]
    at += up(many * bins * TILE_COLS * 4);
    unsigned* place = reinterpret_cast<unsigned*>(at);               // [bin]: where in `slice` its window begins
    at += up(many * bins * 4);
    unsigned short* start = reinterpret_cast<unsigned short*>(at);   // [panel][bins + 1]
    at += up(many * (bins + 1) * 2);
    WEIGHT* slice = reinterpret_cast<WEIGHT*>(at);                   // the buckets of all panels

    const int pieces = rows / VECTOR;  // of the tile, a thread each
    const int sharers = min(THREADS / pieces, SHARERS), mine = threadIdx.x / pieces;
    const int inside = tile * rows + threadIdx.x % pieces * VECTOR;  // this thread's first output, inside the strip
    const int here = min(VECTOR, strip_rows - inside);               // its outputs; none if not positive
    const bool lower = is_lower(layout, strip);
    const int full = of_panel(layout.candidates, lower, layout.full_cols == 0);  // bins of the first panel, as of all
    const int panel_buckets = of_panel(layout.buckets, lower, false);            // but the last; buckets of those
    const bool contiguous = TILE_COLS == 1 || (x_across == 1 && x_down == TILE_COLS);

    float sum[VECTOR][TILE_COLS] = {};
    for (int first = split.begin; first < split.end; first += many) {
        const int panels = min(many, split.end - first), last_panel = first + panels - 1;
        const int inputs = min(panels * max_width, layout.cols - first * max_width);
        const bool narrower = last_panel == layout.full_cols;
        const int all = (panels - 1) * full + of_panel(layout.candidates, lower, narrower);
        const int buckets = (panels - 1) * panel_buckets + of_panel(layout.buckets, lower, narrower);
        const long long list_at = (long long)strip * across + first;
        const WEIGHT* x = x_dn + first * max_width * x_down;

        copy_run<8>(list, entries + list_at * capacity, panels * capacity);
        if (contiguous) copy_run<16>(x_tile, x, inputs * TILE_COLS);
        cp_async_commit();
        copy_run<16>(slice, w_k + first_bucket(layout, strip) + (long long)first * panel_buckets, buckets);
        cp_async_commit();
        if (!contiguous) spread_inputs(x_tile, x, x_down, x_across, inputs, n);
#pragma unroll 2
        for (int k = threadIdx.x; k < panels * (bins + 1); k += THREADS) start[k] = starts[list_at * (bins + 1) + k];
        cp_async_wait<1>();
        __syncthreads();  // inputs and lists are complete

        const int items = all * (TILE_COLS / EACH) << shift;
        for (int e0 = 0; e0 < items; e0 += THREADS) {  // all lanes of a warp shuffle
            const int e = e0 + threadIdx.x, lane = e & ((1 << shift) - 1), s = (e >> shift) % (TILE_COLS / EACH) * EACH;
            const int k = min((e >> shift) / (TILE_COLS / EACH), all - 1), q = min(k / full, panels - 1);
            const unsigned short* my_start = start + q * (bins + 1) + k - q * full;
            float bin[EACH] = {};
            sum_bin(bin, reinterpret_cast<const uint2*>(list + q * capacity), my_start[0] + lane, my_start[1], shift,
                    x_tile + q * max_width * TILE_COLS + s, min(max_width, inputs - q * max_width));
            for (int step = 1; step < 1 << shift; step *= 2) {
#pragma unroll
                for (int c = 0; c < EACH; ++c) bin[c] += __shfl_xor_sync(~0u, bin[c], step);
            }
            if (lane == 0 && e < items) {
#pragma unroll
                for (int c = 0; c < EACH; ++c) z[k * TILE_COLS + s + c] = bin[c];
                if (s == 0) place[k] = q * panel_buckets + (k - q * full) * STRIDE;
            }
        }
        cp_async_wait<0>();
        __syncthreads();  // z and the buckets are complete

        if (mine < sharers && here > 0) {
            const WEIGHT* mine_in = slice + inside;
#pragma unroll(TILE_COLS > 4 ? 2 : 4)
            for (int k = mine; k < all; k += sharers) {
                const WEIGHT* from = mine_in + place[k];
                Run<VECTOR, WEIGHT> w = {};
                if (aligned) {
                    w = *reinterpret_cast<const Run<VECTOR, WEIGHT>*>(from);
                } else {
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) {
                        if (v < here) w.v[v] = from[v];
                    }
                }
#pragma unroll
                for (int c = 0; c < TILE_COLS; c += COLUMNS) {
                    const Run<COLUMNS, float> zs = *reinterpret_cast<const Run<COLUMNS, float>*>(&z[k * TILE_COLS + c]);
#pragma unroll
                    for (int v = 0; v < VECTOR; ++v) {
#pragma unroll
                        for (int q = 0; q < COLUMNS; ++q) sum[v][c + q] += to_float(w.v[v]) * zs.v[q];
                    }
                }
            }
        }
        __syncthreads();  // nobody reads shared memory any more
    }

    // The sums of the threads that share outputs, COLUMNS columns at a time. Every VECTOR-th output stands in one row;
    // the four numbers between rows keep neighbouring outputs in different banks.
    const int pitch = pieces * COLUMNS + 4, outputs = rows * COLUMNS;
    float* total = reinterpret_cast<float*>(memory);                 // [sharer][v][pitch]
    float* some = total + sharers * VECTOR * pitch;                  // [section][output]: sums of some of the sharers
    const int sections = max(1, THREADS / outputs), length = (sharers - 1) / sections + 1;
    const int i0 = strip * BLOCK_ROWS + tile * rows;
    const int i_end = min(layout.rows, min(strip_rows - tile * rows, rows) + i0);
#pragma unroll
    for (int c = 0; c < TILE_COLS; c += COLUMNS) {
        if (c > 0) __syncthreads();  // nobody reads the sums before
        if (mine < sharers) {
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                Run<COLUMNS, float> sums;
#pragma unroll
                for (int q = 0; q < COLUMNS; ++q) sums.v[q] = sum[v][c + q];
                float* to = &total[(mine * VECTOR + v) * pitch + threadIdx.x % pieces * COLUMNS];
                *reinterpret_cast<Run<COLUMNS, float>*>(to) = sums;
            }
        }
        __syncthreads();  // all sums are there
        for (int e = threadIdx.x; e < outputs * sections; e += THREADS) {
            const int i = e % outputs / COLUMNS, q = e % COLUMNS, section = e / outputs;
            const float* from = &total[i % VECTOR * pitch + i / VECTOR * COLUMNS + q];
            const int end = min(sharers, (section + 1) * length);
            float all = 0.0f;
#pragma unroll 8
            for (int p = section * length; p < end; ++p) all += from[p * VECTOR * pitch];
            if (sections > 1) {
                some[e] = all;
            } else if (i < i_end - i0 && c + q < n) {
                leave_sum(meeting, split, i0 + i, c + q, all);
            }
        }
        if (sections > 1) {
            __syncthreads();
            for (int e = threadIdx.x; e < outputs; e += THREADS) {
                float all = 0.0f;
#pragma unroll 8
                for (int p = 0; p < sections; ++p) all += some[p * outputs + e];
                if (e / COLUMNS < i_end - i0 && c + e % COLUMNS < n) {
                    leave_sum(meeting, split, i0 + e / COLUMNS, c + e % COLUMNS, all);
                }
            }
        }
    }
    add_parts(meeting, split, blockIdx.x / parts, i0, i_end, 0, n, threadIdx.x, THREADS, last);
}
