// The emulator's scheduler, memory guards and access hooks. Compiled once, linked into every kernel's shared library.
//
// Every CUDA thread is a fiber: a stack and a saved stack pointer. All fibers of a block run in one operating-system
// thread, in turn, from one barrier to the next; blocks run one after another. In a traced build the compiler reports
// every memory access through the ThreadSanitizer hooks at the end of this file (its runtime is not linked).
//
// Uses the C library alone. No memory is allocated while a plain kernel runs.

#include <link.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define HIDDEN extern "C" __attribute__((visibility("hidden")))

// ---- what Python and this file share (mirrored in native.py)

enum Mode { PLAIN, TRACE, CHECK };
enum Error { OK, SIGNAL, BARRIER, WARP, ASSERT, INTERRUPT };
enum { READ, WRITE, ATOMIC };
enum Kind { RACE, UNINITIALISED, OUTSIDE, MISALIGNED };
enum { STATIC_SHARED = -1, DYNAMIC_SHARED = -2, NOWHERE = -3 };

struct Region {
    uint64_t base, size;
    uint32_t granule, pad; // bytes that the race detector keeps apart
};

struct Launch {
    uint32_t grid[3], block[3];
    uint32_t dynamic_bytes, mode;
    void **args;
    const uint16_t *order;  // threads of a block, in the order in which they run; null: 0, 1, 2, ...
    const uint64_t *blocks; // blocks to run, linear, in this order; null: all
    uint64_t n_blocks;
    const Region *regions; // the arrays
    uint64_t n_regions;
    const Region *variables; // of the source, outside functions: `__device__ int count`
    uint64_t n_variables;
    uint8_t *stacks;
    uint64_t stack_bytes;
    // What happened.
    int32_t error, signal, line, other_line;
    uint32_t thread, other_thread; // linear
    uint32_t block_index[3];
    uint32_t returned, waiting;
    int32_t wrote; // a fault: 1 a store, 0 a load, -1 unknown
    uint64_t address, pc;
    char text[200];
};

struct Site { // one row of what Python turns into source lines
    uint64_t pc;
    int32_t op, region, size, piece;
    uint64_t requests, lanes, bytes, sectors, ideal_sectors, wavefronts, ideal_wavefronts;
};

struct Sample {
    uint32_t site, block, warp, mask;
    int64_t offset[32];
};

struct Problem {
    int32_t kind, op, other_op, region;
    uint64_t pc, other_pc, offset, address, count;
    uint32_t thread, other_thread, block, other_block;
    int32_t size;
};

// ---- symbols that kernels use

HIDDEN uint32_t hm_threadIdx[3], hm_blockIdx[3], hm_blockDim[3], hm_gridDim[3], hm_lane;
uint32_t hm_threadIdx[3], hm_blockIdx[3], hm_blockDim[3], hm_gridDim[3], hm_lane;

enum { DYNAMIC_ROOM = 256 * 1024, DYNAMIC_GUARD = 64 * 1024 };
// `extern __shared__ T name[]` becomes a name for this. What a launch did not ask for is made inaccessible.
HIDDEN uint8_t hm_dynamic[DYNAMIC_ROOM + DYNAMIC_GUARD];
uint8_t __attribute__((aligned(65536))) hm_dynamic[DYNAMIC_ROOM + DYNAMIC_GUARD];

// The linker's names for the two ends of the static shared variables of a source; absent if there are none.
extern "C" __attribute__((weak, visibility("hidden"))) uint8_t __start_hm_shared[], __stop_hm_shared[];

// What the glue behind every source defines.
HIDDEN void hm_kernel(void **args);

// ---- fibers

enum State : uint8_t { NEW, READY, AT_BARRIER, IN_WARP, DONE };

struct Copy { // one cp.async
    uint8_t *to;
    const uint8_t *from;
    uint32_t bytes, source_bytes, group, site;
};

struct __attribute__((aligned(64))) Thread {
    // What a switch touches: one cache line.
    void *sp;
    uint8_t *stack;
    uint32_t index[3];
    uint32_t id;
    State state;
    int line;
    // a warp collective
    int op, source;
    uint32_t mask;
    uint64_t value, result;
    void *data;
    const char *what;
    void (*complete)(void **, unsigned);
    // cp.async
    Copy *copies;
    uint32_t n_copies, copy_room, group;
    uint32_t events; // since the warp's requests were counted last
};

enum { MAX_THREADS = 1024, WARP_LANES = 32 };
static Thread threads[MAX_THREADS];
static uint16_t order[MAX_THREADS];
static uint32_t n_threads, position, n_done;
static Thread *self;
static void *main_sp;
static uint8_t *free_stacks[MAX_THREADS];
static uint32_t n_free;
static Launch *launch;
static uint32_t n_waiting; // at the barrier
static int barrier_line, predicate_sum, block_predicate;
static bool barrier_mixed; // threads wait at different lines
static bool paused;        // a thread has made so many requests that they are counted before it goes on (trace)
static uint32_t block_serial; // of the running block
static uint32_t epoch;        // barriers that the running block has passed
static long long ticks;
static volatile sig_atomic_t interrupted, running, busy;

extern "C" __attribute__((visibility("hidden"))) void hm_switch(void **save, void *load);
#if defined(__x86_64__)
__asm__(".text\n.globl hm_switch\n.hidden hm_switch\n.type hm_switch,@function\n.p2align 4\nhm_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
        ".size hm_switch,.-hm_switch\n");
static void *first_frame(uint8_t *top, void (*entry)(void)) {
    void **sp = (void **)top;
    *--sp = nullptr; // keeps the stack as the calling convention wants it at entry; also a return address for debuggers
    *--sp = (void *)entry;
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    return sp;
}
#elif defined(__aarch64__)
__asm__(".text\n.globl hm_switch\n.hidden hm_switch\n.type hm_switch,%function\n.p2align 4\nhm_switch:\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
        "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
        "  mov x2, sp\n  str x2, [x0]\n  mov sp, x1\n"
        "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
        "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n  ret\n.size hm_switch,.-hm_switch\n");
static void *first_frame(uint8_t *top, void (*entry)(void)) {
    void **sp = (void **)(top - 160);
    memset(sp, 0, 160);
    sp[11] = (void *)entry; // x30: where `ret` goes
    return sp;
}
#else
#error "the emulator switches fibers on x86-64 and aarch64"
#endif

static void fiber_main(void);
static void release(void);
static bool resolve(void);
static void flush_warp(uint32_t warp);

// Leave the launch from inside a fiber. The other fibers are abandoned.
static void __attribute__((noreturn)) leave(void) {
    void *dropped;
    hm_switch(&dropped, main_sp);
    __builtin_unreachable();
}

static void __attribute__((noreturn)) fail(int error, int line, int other_line, const Thread *a, const Thread *b, const char *text) {
    launch->error = error;
    launch->line = line;
    launch->other_line = other_line;
    launch->thread = a ? a->id : 0;
    launch->other_thread = b ? b->id : 0;
    snprintf(launch->text, sizeof launch->text, "%s", text);
    leave();
}

static inline void become(Thread *t) {
    self = t;
    hm_threadIdx[0] = t->index[0];
    hm_threadIdx[1] = t->index[1];
    hm_threadIdx[2] = t->index[2];
    hm_lane = t->id % WARP_LANES;
}

// The next thread that can run; null when the whole block is done.
static inline Thread *next_thread(void) {
    for (;;) {
        while (position < n_threads) {
            Thread *t = &threads[order[position++]];
            if (t->state <= READY) return t;
        }
        if (interrupted) fail(INTERRUPT, 0, 0, nullptr, nullptr, "");
        position = 0;
        if (n_waiting == n_threads && !barrier_mixed) release();
        else if (!resolve()) return nullptr;
    }
}

static void resume(Thread *t, void **save) {
    if (t->state == NEW) {
        t->state = READY;
        t->stack = free_stacks[--n_free];
        t->sp = first_frame(t->stack, fiber_main);
    }
    become(t);
    hm_switch(save, t->sp);
}

// The running thread cannot go on: give way to another one, come back when it can.
static void yield(void) {
    Thread *me = self, *t = next_thread();
    if (t != me) resume(t, &me->sp);
}

static void check_nobody_waits_for(Thread *t) {
    uint32_t warp = t->id / WARP_LANES * WARP_LANES, lane = t->id % WARP_LANES;
    for (uint32_t i = warp; i < warp + WARP_LANES && i < n_threads; i++) {
        Thread *o = &threads[i];
        if (o->state == IN_WARP && o->mask >> lane & 1) {
            char text[160];
            snprintf(text, sizeof text, "waits in %s for a lane of its mask 0x%08x that has returned", o->what, o->mask);
            fail(WARP, o->line, 0, o, t, text);
        }
    }
}

// Runs one thread after another on the same stack for as long as they return without having waited.
static void fiber_main(void) {
    for (;;) {
        hm_kernel(launch->args);
        Thread *me = self;
        me->state = DONE;
        n_done++;
        check_nobody_waits_for(me);
        Thread *t = next_thread();
        if (!t) leave();
        if (t->state == NEW) {
            t->state = READY;
            t->stack = me->stack;
            become(t);
            continue;
        }
        free_stacks[n_free++] = me->stack; // nothing takes it before this fiber has been left
        become(t);
        hm_switch(&me->sp, t->sp);
    }
}

// ---- barriers

// Whether a lane waits in the same collective as another one.
static bool meets(const Thread *o, const Thread *t) {
    return o->state == IN_WARP && o->mask == t->mask && o->op == t->op && o->what == t->what;
}

// All threads wait at the same barrier: let them go on.
static void release(void) {
    if (launch->mode == TRACE)
        for (uint32_t w = 0; w * WARP_LANES < n_threads; w++) flush_warp(w);
    block_predicate = predicate_sum;
    predicate_sum = 0;
    n_waiting = 0;
    epoch++;
    for (uint32_t i = 0; i < n_threads; i++) threads[i].state = READY;
}

// Every thread has run until it could not go on. Is one of them ready, or why can none go on? False: all are done.
static bool resolve(void) {
    if (n_done == n_threads) return false;
    if (paused)
        for (uint32_t w = 0; w * WARP_LANES < n_threads; w++) flush_warp(w);
    paused = false;
    Thread *at_barrier = nullptr, *in_warp = nullptr, *done = nullptr, *elsewhere = nullptr;
    for (uint32_t i = 0; i < n_threads; i++) {
        Thread *t = &threads[i];
        if (t->state <= READY) return true;
        if (t->state == DONE) done = t;
        else if (t->state == IN_WARP) in_warp = t;
        else if (!at_barrier) at_barrier = t;
        else if (t->line != at_barrier->line) elsewhere = t;
    }
    launch->waiting = n_waiting;
    launch->returned = n_done;
    if (in_warp) { // at least one lane of its mask waits somewhere else
        uint32_t first = in_warp->id / WARP_LANES * WARP_LANES, lane = 0;
        while (!(in_warp->mask >> lane & 1) || meets(&threads[first + lane], in_warp)) lane++;
        const Thread *other = &threads[first + lane];
        char text[200];
        if (other->state == AT_BARRIER)
            snprintf(text, sizeof text, "waits in %s with mask 0x%08x for lane %u, which waits at a barrier", in_warp->what, in_warp->mask, lane);
        else
            snprintf(text, sizeof text, "waits in %s with mask 0x%08x for lane %u, which waits in %s with mask 0x%08x", in_warp->what,
                     in_warp->mask, lane, other->what, other->mask);
        fail(WARP, in_warp->line, other->line, in_warp, other, text);
    }
    if (elsewhere) fail(BARRIER, at_barrier->line, elsewhere->line, at_barrier, elsewhere, "other threads wait at another barrier");
    fail(BARRIER, at_barrier->line, 0, at_barrier, done, "other threads have returned");
}

HIDDEN int hm_syncthreads(int line, int predicate, int reduction) {
    Thread *me = self;
    me->line = line;
    me->state = AT_BARRIER;
    predicate_sum += predicate;
    if (!n_waiting++) barrier_line = line, barrier_mixed = false;
    else if (line != barrier_line) barrier_mixed = true;
    Thread *t = next_thread();
    if (position + 1 < n_threads) { // the next switch will need these
        const uint8_t *sp = (const uint8_t *)threads[order[position]].sp;
        __builtin_prefetch(sp), __builtin_prefetch(sp + 64), __builtin_prefetch(&threads[order[position + 1]]);
    }
    if (t != me) {
        if (t->state == NEW) {
            resume(t, &me->sp);
        } else {
            become(t);
            hm_switch(&me->sp, t->sp);
        }
    }
    if (reduction == 1) return block_predicate;
    return reduction == 2 ? block_predicate == (int)n_threads : block_predicate > 0;
}

// ---- warp collectives: lanes deposit and wait; the last one to arrive exchanges for all

enum { SYNCWARP, SHFL, BALLOT, MATCH_ANY, MATCH_ALL, ADD, MIN, MAX, UMIN, UMAX, AND, OR, XOR, OTHER };
static const char *const OP_NAMES[] = {"__syncwarp", "a shuffle", "a vote", "__match_any_sync", "__match_all_sync", "__reduce_add_sync",
    "__reduce_min_sync", "__reduce_max_sync", "__reduce_min_sync", "__reduce_max_sync", "__reduce_and_sync", "__reduce_or_sync",
    "__reduce_xor_sync", "a collective"};

static uint16_t clocks[MAX_THREADS][WARP_LANES]; // what each lane knows of the __syncwarp count of its warp's lanes

static void exchange(Thread *warp, uint32_t mask, int op) {
    uint64_t all = op == AND ? ~0ull : 0;
    bool same = true, first = true;
    uint32_t ballot = 0;
    uint64_t one = 0;
    for (uint32_t l = 0; l < WARP_LANES; l++) {
        if (!(mask >> l & 1)) continue;
        uint64_t v = warp[l].value;
        if (first) one = v;
        same &= v == one;
        ballot |= (uint32_t)(v != 0) << l;
        switch (op) {
        case ADD: all += v; break;
        case MIN: all = first || (int32_t)v < (int32_t)all ? v : all; break;
        case MAX: all = first || (int32_t)v > (int32_t)all ? v : all; break;
        case UMIN: all = first || (uint32_t)v < (uint32_t)all ? v : all; break;
        case UMAX: all = first || (uint32_t)v > (uint32_t)all ? v : all; break;
        case AND: all &= v; break;
        case OR: all |= v; break;
        case XOR: all ^= v; break;
        }
        first = false;
    }
    if (op == BALLOT) all = ballot;
    if (op == MATCH_ALL) all = same ? mask : 0;
    for (uint32_t l = 0; l < WARP_LANES; l++) {
        if (!(mask >> l & 1)) continue;
        Thread &t = warp[l];
        t.result = all;
        // A lane outside the mask has nothing to give: what arrives is poison.
        if (op == SHFL) t.result = mask >> t.source & 1 ? warp[t.source].value : ~0ull;
        if (op == MATCH_ANY) {
            t.result = 0;
            for (uint32_t m = 0; m < WARP_LANES; m++)
                if (mask >> m & 1 && warp[m].value == t.value) t.result |= 1u << m;
        }
    }
    if (op == SYNCWARP && launch->mode == CHECK) {
        uint16_t known[WARP_LANES] = {};
        uint32_t base = (uint32_t)(warp - threads);
        for (uint32_t l = 0; l < WARP_LANES; l++) {
            if (!(mask >> l & 1)) continue;
            clocks[base + l][l]++;
            for (uint32_t m = 0; m < WARP_LANES; m++)
                if (clocks[base + l][m] > known[m]) known[m] = clocks[base + l][m];
        }
        for (uint32_t l = 0; l < WARP_LANES; l++)
            if (mask >> l & 1) memcpy(clocks[base + l], known, sizeof known);
    }
}

static void meet(int line, uint32_t mask, int op, const char *what) {
    Thread *me = self;
    uint32_t lane = me->id % WARP_LANES, first = me->id - lane;
    Thread *warp = &threads[first];
    uint32_t existing = n_threads - first >= WARP_LANES ? ~0u : (1u << (n_threads - first)) - 1;
    char text[160];
    mask &= existing;
    me->line = line, me->mask = mask, me->op = op, me->what = what;
    if (!(mask >> lane & 1)) {
        snprintf(text, sizeof text, "calls %s with mask 0x%08x, which leaves out its own lane %u", what, mask, lane);
        fail(WARP, line, 0, me, nullptr, text);
    }
    bool complete = true;
    for (uint32_t l = 0; l < WARP_LANES; l++) {
        if (!(mask >> l & 1) || l == lane) continue;
        Thread *o = &warp[l];
        if (o->state == DONE) {
            snprintf(text, sizeof text, "waits in %s for a lane of its mask 0x%08x that has returned", what, mask);
            fail(WARP, line, 0, me, o, text);
        }
        if (!meets(o, me)) complete = false;
    }
    if (!complete) {
        me->state = IN_WARP;
        yield();
        return;
    }
    if (op == OTHER) {
        void *data[WARP_LANES];
        for (uint32_t l = 0; l < WARP_LANES; l++) data[l] = mask >> l & 1 ? warp[l].data : nullptr;
        me->complete(data, mask);
    } else {
        exchange(warp, mask, op);
    }
    uint32_t alive = 0;
    for (uint32_t l = 0; l < WARP_LANES; l++) {
        if (existing >> l & 1 && warp[l].state != DONE) alive |= 1u << l;
        if (mask >> l & 1) warp[l].state = READY;
    }
    if (launch->mode == TRACE && (alive & ~mask) == 0) flush_warp(first / WARP_LANES);
}

HIDDEN unsigned long long hm_exchange(int line, int op, unsigned mask, unsigned long long value, int source) {
    self->value = value;
    self->source = source & 31;
    meet(line, mask, op, OP_NAMES[op]);
    return self->result;
}

HIDDEN void hm_collective(int line, unsigned mask, const char *what, void *data, void (*complete)(void **, unsigned)) {
    self->data = data;
    self->complete = complete;
    meet(line, mask, OTHER, what);
}

HIDDEN unsigned hm_activemask(void) {
    uint32_t first = self->id / WARP_LANES * WARP_LANES, mask = 0;
    for (uint32_t l = 0; l < WARP_LANES && first + l < n_threads; l++)
        if (threads[first + l].state != DONE) mask |= 1u << l;
    return mask;
}

HIDDEN long long hm_clock(void) { return ticks += 16; }

// ---- printf and assert

enum { OUTPUT_ROOM = 1 << 20 };
static char *output;
static uint32_t output_length;

HIDDEN int hm_printf(const char *format, ...) {
    busy = 1;
    if (!output) output = (char *)malloc(OUTPUT_ROOM);
    va_list args;
    va_start(args, format);
    int n = output ? vsnprintf(output + output_length, OUTPUT_ROOM - output_length, format, args) : 0;
    va_end(args);
    if (n > 0) output_length = output_length + n < OUTPUT_ROOM ? output_length + n : OUTPUT_ROOM - 1;
    busy = 0;
    return n;
}

EXPORT const char *hm_output(uint32_t *length) {
    *length = output_length;
    output_length = 0;
    return output;
}

HIDDEN void __attribute__((noreturn)) hm_assert_fail(const char *condition, int line) {
    launch->pc = (uint64_t)__builtin_return_address(0) - 1;
    fail(ASSERT, line, 0, self, nullptr, condition);
}

// ---- the sites of accesses and what is known of them (traced builds)

template <class T> struct List {
    T *at;
    uint32_t n, room;
    T &add() {
        if (n == room) {
            room = room ? 2 * room : 64;
            at = (T *)realloc((void *)at, room * sizeof(T));
            if (!at) abort();
        }
        memset((void *)&at[n], 0, sizeof(T));
        return at[n++];
    }
    void release() { free(at), at = nullptr, n = room = 0; }
};

static List<Site> sites;
static List<Sample> samples;
static List<Problem> problems;
static uint32_t *site_table, site_table_size; // open addressing; 0 is empty, else the site + 1

struct Request {
    uint32_t mask;
    int64_t offset[WARP_LANES];
};
struct Pending { // requests of one warp at one site that are not counted yet
    Request *at;
    uint32_t n, room, seen[WARP_LANES];
};
static Pending *pending[MAX_THREADS / WARP_LANES];
static uint32_t pending_room[MAX_THREADS / WARP_LANES];
enum { SAMPLES_PER_SITE = 8, EVENTS_BEFORE_PAUSE = 1 << 16 };
static uint8_t *site_samples;
static uint32_t site_samples_room;

static uint32_t site_hash(uint64_t pc, int op, int region, int size, int piece) {
    uint64_t h = pc * 0x9E3779B97F4A7C15ull ^ (uint64_t)(op + 4 * (region + 8) + 4096 * size + 65536 * piece) * 0xBF58476D1CE4E5B9ull;
    return (uint32_t)(h >> 32);
}

static uint32_t find_site(uint64_t pc, int op, int region, int size, int piece) {
    if (2 * (sites.n + 1) > site_table_size) {
        site_table_size = site_table_size ? 2 * site_table_size : 1024;
        free(site_table);
        site_table = (uint32_t *)calloc(site_table_size, sizeof *site_table);
        if (!site_table) abort();
        for (uint32_t i = 0; i < sites.n; i++) {
            const Site &s = sites.at[i];
            uint32_t h = site_hash(s.pc, s.op, s.region, s.size, s.piece) & (site_table_size - 1);
            while (site_table[h]) h = (h + 1) & (site_table_size - 1);
            site_table[h] = i + 1;
        }
    }
    uint32_t h = site_hash(pc, op, region, size, piece) & (site_table_size - 1);
    for (; site_table[h]; h = (h + 1) & (site_table_size - 1)) {
        const Site &s = sites.at[site_table[h] - 1];
        if (s.pc == pc && s.op == op && s.region == region && s.size == size && s.piece == piece) return site_table[h] - 1;
    }
    Site &s = sites.add();
    s.pc = pc, s.op = op, s.region = region, s.size = size, s.piece = piece;
    site_table[h] = sites.n;
    return sites.n - 1;
}

// ---- trace: requests, sectors, wavefronts

static void record(uint32_t site, int64_t offset) {
    uint32_t warp = self->id / WARP_LANES, lane = self->id % WARP_LANES;
    if (site >= pending_room[warp]) {
        uint32_t room = (site + 1) * 2;
        pending[warp] = (Pending *)realloc((void *)pending[warp], room * sizeof(Pending));
        if (!pending[warp]) abort();
        memset((void *)(pending[warp] + pending_room[warp]), 0, (room - pending_room[warp]) * sizeof(Pending));
        pending_room[warp] = room;
    }
    Pending &p = pending[warp][site];
    uint32_t k = p.seen[lane]++;
    if (k >= p.n) {
        if (k >= p.room) {
            p.room = p.room ? 2 * p.room : 16;
            p.at = (Request *)realloc((void *)p.at, p.room * sizeof(Request));
            if (!p.at) abort();
        }
        p.at[p.n++].mask = 0;
    }
    p.at[k].mask |= 1u << lane;
    p.at[k].offset[lane] = offset;
}

// Distinct values among n; sorts them.
static uint32_t distinct(int64_t *v, uint32_t n) {
    for (uint32_t i = 1; i < n; i++) {
        int64_t x = v[i];
        uint32_t j = i;
        for (; j && v[j - 1] > x; j--) v[j] = v[j - 1];
        v[j] = x;
    }
    uint32_t d = 0;
    for (uint32_t i = 0; i < n; i++) d += !i || v[i] != v[i - 1];
    return d;
}

static void count_global(Site &s, const Request &r) {
    int64_t units[WARP_LANES * 2], starts[WARP_LANES];
    uint32_t n = 0, lanes = 0;
    for (uint32_t l = 0; l < WARP_LANES; l++) {
        if (!(r.mask >> l & 1)) continue;
        starts[lanes++] = r.offset[l];
        int64_t first = r.offset[l] >> 5, last = (r.offset[l] + s.size - 1) >> 5;
        units[n++] = first;
        if (last != first) units[n++] = last;
    }
    s.sectors += distinct(units, n);
    distinct(starts, lanes);
    uint64_t bytes = 0; // asked for by at least one lane
    int64_t end = INT64_MIN;
    for (uint32_t i = 0; i < lanes; i++) {
        int64_t from = starts[i] > end ? starts[i] : end, to = starts[i] + s.size;
        if (to > from) bytes += to - from;
        if (to > end) end = to;
    }
    s.ideal_sectors += (bytes + 31) / 32;
}

// Banks are 4 bytes wide, and lanes that ask for the same word share it. Accesses of 4 bytes take the whole warp at once,
// of 8 bytes a half, of 16 a quarter; but twice as many lanes if they come in equal pairs: lanes l and l ^ 1 everywhere,
// or l and l ^ 2 everywhere, ask for the same. That rule was read off an H100's counters (data/results/counters.json).
// Atomics on one word take turns.
static bool in_pairs(const Request &r, uint32_t apart) {
    for (uint32_t l = 0; l < WARP_LANES; l++)
        if (r.mask >> l & 1 && r.mask >> (l ^ apart) & 1 && r.offset[l] != r.offset[l ^ apart]) return false;
    return true;
}

static void count_shared(Site &s, const Request &r) {
    uint32_t words = s.size <= 4 ? 1 : (uint32_t)s.size / 4, per_phase = WARP_LANES / words;
    if (words > 1 && (in_pairs(r, 1) || in_pairs(r, 2))) per_phase *= 2;
    for (uint32_t first = 0; first < WARP_LANES; first += per_phase) {
        uint32_t n = 0, most = 0;
        int64_t asked[2 * WARP_LANES];
        for (uint32_t l = first; l < first + per_phase; l++)
            if (r.mask >> l & 1)
                for (uint32_t w = 0; w < words; w++) asked[n++] = (r.offset[l] >> 2) + w;
        if (!n) continue;
        distinct(asked, n);
        uint32_t banks[32] = {};
        for (uint32_t i = 0; i < n; i++) {
            if (i && asked[i] == asked[i - 1] && s.op != ATOMIC) continue;
            uint32_t load = ++banks[asked[i] & 31];
            if (load > most) most = load;
        }
        s.wavefronts += most;
        s.ideal_wavefronts++;
    }
}

static void flush_warp(uint32_t warp) {
    busy = 1;
    for (uint32_t i = 0; i < pending_room[warp] && i < sites.n; i++) {
        Pending &p = pending[warp][i];
        if (!p.n) continue;
        Site &s = sites.at[i];
        if (i >= site_samples_room) {
            uint32_t room = 2 * (i + 1);
            site_samples = (uint8_t *)realloc(site_samples, room);
            if (!site_samples) abort();
            memset(site_samples + site_samples_room, 0, room - site_samples_room);
            site_samples_room = room;
        }
        for (uint32_t k = 0; k < p.n; k++) {
            const Request &r = p.at[k];
            uint32_t lanes = (uint32_t)__builtin_popcount(r.mask);
            s.requests++;
            s.lanes += lanes;
            s.bytes += (uint64_t)lanes * s.size;
            if (s.region >= 0) count_global(s, r);
            else count_shared(s, r);
            if (site_samples[i] < SAMPLES_PER_SITE) {
                site_samples[i]++;
                Sample &sample = samples.add();
                sample.site = i, sample.block = block_serial, sample.warp = warp, sample.mask = r.mask;
                memcpy(sample.offset, r.offset, sizeof r.offset);
            }
        }
        p.n = 0;
        memset(p.seen, 0, sizeof p.seen);
    }
    for (uint32_t i = warp * WARP_LANES; i < (warp + 1) * WARP_LANES && i < n_threads; i++) threads[i].events = 0;
    busy = 0;
}

// ---- check: a shadow of every byte or element says who touched it last

struct Access {
    uint32_t site; // + 1; 0 nobody
    uint32_t block, epoch;
    uint16_t thread, clock;
};
struct Cell {
    Access write, read, other_read; // the last write, and the last reads by two threads
};
static Cell *shadow_static, *shadow_dynamic;
static uint32_t *written_static, *written_dynamic; // the last block that wrote this byte, + 1
static Cell **shadow_arrays;

static bool in_conflict(const Access &before, uint32_t me, bool shared, int op) {
    if (!before.site) return false;
    const Site &site = sites.at[before.site - 1];
    if (op == ATOMIC && site.op == ATOMIC) return false;
    if (before.block != block_serial) return !shared;
    if (before.epoch != epoch || before.thread == me) return false;
    if (before.thread / WARP_LANES == me / WARP_LANES && clocks[me][before.thread % WARP_LANES] > before.clock) return false;
    return true;
}

static void report(int kind, uint32_t site, const Access *before, int region, uint64_t offset, uint64_t address, int size) {
    const Site &s = sites.at[site];
    uint64_t other_pc = before ? sites.at[before->site - 1].pc : 0;
    int other_op = before ? sites.at[before->site - 1].op : 0;
    for (uint32_t i = 0; i < problems.n; i++) {
        Problem &p = problems.at[i];
        if (p.kind == kind && p.pc == s.pc && p.other_pc == other_pc && p.op == s.op && p.other_op == other_op && p.region == region) {
            p.count++;
            return;
        }
    }
    if (problems.n >= 1000) return;
    Problem &p = problems.add();
    p.kind = kind, p.op = s.op, p.other_op = other_op, p.region = region, p.pc = s.pc, p.other_pc = other_pc;
    p.offset = offset, p.address = address, p.count = 1, p.size = size;
    p.thread = self->id, p.block = block_serial;
    if (before) p.other_thread = before->thread, p.other_block = before->block;
}

static void touch(uint32_t site, int region, uint64_t offset, uint32_t size, int op) {
    Cell *cells;
    uint32_t *written = nullptr, granule = 1;
    bool shared = region < 0;
    if (region == STATIC_SHARED) cells = shadow_static, written = written_static;
    else if (region == DYNAMIC_SHARED) cells = shadow_dynamic, written = written_dynamic;
    else cells = shadow_arrays[region], granule = launch->regions[region].granule;
    uint32_t me = self->id;
    Access now = {site + 1, block_serial, epoch, (uint16_t)me, clocks[me][me % WARP_LANES]};
    bool raced = false, unwritten = false;
    for (uint64_t i = offset / granule; i <= (offset + size - 1) / granule; i++) {
        if (written) {
            if (op != WRITE && written[i] != block_serial + 1 && !unwritten) {
                unwritten = true;
                report(UNINITIALISED, site, nullptr, region, i, 0, size);
            }
            if (op != READ) written[i] = block_serial + 1;
        }
        Cell &c = cells[i];
        const Access *against = nullptr;
        if (in_conflict(c.write, me, shared, op)) against = &c.write;
        else if (op != READ && in_conflict(c.read, me, shared, op)) against = &c.read;
        else if (op != READ && in_conflict(c.other_read, me, shared, op)) against = &c.other_read;
        if (against && !raced) {
            raced = true;
            report(RACE, site, against, region, i * granule, 0, size);
        }
        if (op != READ) c.write = now;
        else {
            if (!(c.read.site && c.read.thread == me && c.read.block == block_serial)) c.other_read = c.read;
            c.read = now;
        }
    }
}

// ---- the hook

static uint64_t library_base, library_end, writable_base;

// threadIdx and its kind: constants to a thread, though Clang watches their loads.
static bool is_builtin(uint64_t a) {
    const uint32_t *const all[] = {hm_threadIdx, hm_blockIdx, hm_blockDim, hm_gridDim};
    for (const uint32_t *v : all)
        if (a - (uint64_t)v < sizeof hm_threadIdx) return true;
    return a - (uint64_t)&hm_lane < sizeof hm_lane;
}

static void access_piece(uint64_t a, uint32_t size, int op, uint64_t pc, int piece) {
    int region = NOWHERE;
    uint64_t base = 0;
    uint64_t static_bytes = (uint64_t)(__stop_hm_shared - __start_hm_shared);
    if (a - (uint64_t)launch->stacks < launch->stack_bytes * MAX_THREADS) return;
    if (__start_hm_shared && a - (uint64_t)__start_hm_shared < static_bytes) {
        region = STATIC_SHARED, base = (uint64_t)__start_hm_shared;
    } else if (a - (uint64_t)hm_dynamic < sizeof hm_dynamic) {
        base = (uint64_t)hm_dynamic;
        region = a + size - base <= launch->dynamic_bytes ? DYNAMIC_SHARED : NOWHERE;
    } else {
        for (uint64_t i = 0; i < launch->n_regions; i++) {
            const Region &r = launch->regions[i];
            if (a - r.base < r.size) {
                region = a - r.base + size <= r.size ? (int)i : NOWHERE, base = r.base;
                break;
            }
        }
        if (!base && a - library_base < library_end - library_base) {
            if (a < writable_base || is_builtin(a)) return; // a constant
            for (uint64_t i = 0; i < launch->n_variables; i++)
                if (a - launch->variables[i].base < launch->variables[i].size) return;
        }
    }
    busy = 1;
    uint32_t site = find_site(pc, op, region, (int)size, piece);
    if (launch->mode == TRACE) {
        if (region != NOWHERE) record(site, (int64_t)(a - base));
    } else {
        if (region == NOWHERE) report(OUTSIDE, site, nullptr, region, 0, a, (int)size);
        else {
            // Arrays start at a multiple of 256 on a GPU.
            if (size > 1 && (size & (size - 1)) == 0 && (region >= 0 ? a - base : a) % size) report(MISALIGNED, site, nullptr, region, a - base, a, (int)size);
            touch(site, region, a - base, size, op);
        }
    }
    busy = 0;
    if (launch->mode == TRACE && ++self->events >= EVENTS_BEFORE_PAUSE) {
        paused = true; // let the other lanes catch up, count, forget
        yield();
    }
}

static void access(const void *address, uint64_t size, int op, void *return_address) {
    if (!running) return;
    uint64_t a = (uint64_t)address, pc = (uint64_t)return_address - 1;
    int piece = 0;
    bool whole = size <= 16 && (size & (size - 1)) == 0;
    while (size) { // a structure that no one instruction can move goes in words
        uint32_t part = whole ? (uint32_t)size : size >= 4 ? 4 : size >= 2 ? 2 : 1;
        access_piece(a, part, op, pc, piece++);
        a += part, size -= part;
    }
}

HIDDEN void hm_access(const void *address, unsigned size, int op, void *pc) { access(address, size, op, pc); }

// ---- cp.async: the data arrive when the thread waits for them

HIDDEN void hm_cp_async(void *shared, const void *global, unsigned bytes, unsigned source_bytes, void *pc) {
    busy = 1;
    Thread *t = self;
    if (t->n_copies == t->copy_room) {
        t->copy_room = t->copy_room ? 2 * t->copy_room : 16;
        t->copies = (Copy *)realloc((void *)t->copies, t->copy_room * sizeof(Copy));
        if (!t->copies) abort();
    }
    if (source_bytes > bytes) source_bytes = bytes;
    uint32_t site = 0;
    if (launch->mode == CHECK) {
        int region = (uint8_t *)shared >= hm_dynamic && (uint8_t *)shared < hm_dynamic + DYNAMIC_ROOM ? DYNAMIC_SHARED : STATIC_SHARED;
        site = find_site((uint64_t)pc - 1, WRITE, region, (int)bytes, 0);
    }
    t->copies[t->n_copies++] = Copy{(uint8_t *)shared, (const uint8_t *)global, bytes, source_bytes, t->group, site};
    busy = 0;
    if (launch->mode != PLAIN && source_bytes) access(global, source_bytes, READ, pc);
    if (launch->mode == TRACE) access(shared, bytes, WRITE, pc);
}

HIDDEN void hm_cp_async_commit(void) { self->group++; }

HIDDEN void hm_cp_async_wait(int pending) {
    Thread *t = self;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < t->n_copies; i++) {
        Copy c = t->copies[i];
        if (pending >= 0 && (c.group == t->group || t->group - c.group <= (uint32_t)pending)) {
            t->copies[kept++] = c;
            continue;
        }
        memcpy(c.to, c.from, c.source_bytes);
        memset(c.to + c.source_bytes, 0, c.bytes - c.source_bytes);
        if (launch->mode == CHECK) {
            busy = 1;
            const Site &s = sites.at[c.site];
            uint64_t base = s.region == DYNAMIC_SHARED ? (uint64_t)hm_dynamic : (uint64_t)__start_hm_shared;
            uint64_t size = s.region == DYNAMIC_SHARED ? launch->dynamic_bytes : (uint64_t)(__stop_hm_shared - __start_hm_shared);
            uint64_t offset = (uint64_t)c.to - base;
            if (offset + c.bytes <= size) touch(c.site, s.region, offset, c.bytes, WRITE);
            else report(OUTSIDE, c.site, nullptr, NOWHERE, 0, (uint64_t)c.to, (int)c.bytes);
            busy = 0;
        }
    }
    t->n_copies = kept;
}

// ---- faults and Ctrl-C

static sigjmp_buf escape;
static pthread_t launcher;
static struct sigaction saved[4];
static const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGINT};

static void on_signal(int number, siginfo_t *info, void *context) {
    bool mine = running && pthread_equal(pthread_self(), launcher);
    if (number == SIGINT) {
        interrupted = 1;
        if (!mine || busy) return; // seen at the next switch
        launch->error = INTERRUPT;
        siglongjmp(escape, 1);
    }
    if (!mine) { // another thread's fault: not ours to handle
        sigaction(number, &saved[number == SIGSEGV ? 0 : number == SIGBUS ? 1 : 2], nullptr);
        return;
    }
    ucontext_t *u = (ucontext_t *)context;
    launch->error = SIGNAL;
    launch->signal = number;
    launch->address = (uint64_t)info->si_addr;
    launch->thread = self ? self->id : 0;
    launch->wrote = -1;
#if defined(__x86_64__)
    launch->pc = (uint64_t)u->uc_mcontext.gregs[REG_RIP];
    if (number == SIGSEGV) launch->wrote = u->uc_mcontext.gregs[REG_ERR] >> 1 & 1;
    if (info->si_code == SI_KERNEL) launch->address = 0, launch->wrote = 2; // no address: a misaligned vector, or a wild pointer
#else
    launch->pc = u->uc_mcontext.pc;
#endif
    siglongjmp(escape, 1);
}

static void run_blocks(void) {
    uint64_t static_bytes = (uint64_t)(__stop_hm_shared - __start_hm_shared);
    for (uint64_t b = 0; b < launch->n_blocks && !launch->error; b++) {
        uint64_t linear = launch->blocks ? launch->blocks[b] : b;
        hm_blockIdx[0] = (uint32_t)(linear % launch->grid[0]);
        hm_blockIdx[1] = (uint32_t)(linear / launch->grid[0] % launch->grid[1]);
        hm_blockIdx[2] = (uint32_t)(linear / launch->grid[0] / launch->grid[1]);
        block_serial = (uint32_t)linear;
        epoch = 0;
        if (static_bytes) memset(__start_hm_shared, 0xff, static_bytes);
        if (launch->dynamic_bytes) memset(hm_dynamic, 0xff, launch->dynamic_bytes);
        for (uint32_t i = 0; i < n_threads; i++) {
            threads[i].state = NEW;
            threads[i].n_copies = threads[i].group = threads[i].events = 0;
        }
        if (launch->mode == CHECK) memset(clocks, 0, sizeof clocks);
        n_done = position = n_waiting = 0;
        predicate_sum = 0;
        paused = false;
        n_free = n_threads;
        // Tops at different offsets: at one and the same they would all fall into one set of the processor's caches.
        for (uint32_t i = 0; i < n_threads; i++) free_stacks[i] = launch->stacks + (n_threads - i) * launch->stack_bytes - i % 256 * 256;
        if (interrupted) launch->error = INTERRUPT;
        else resume(next_thread(), &main_sp);
        if (launch->mode == TRACE && !launch->error)
            for (uint32_t w = 0; w * WARP_LANES < n_threads; w++) flush_warp(w);
    }
}

static int find_library(struct dl_phdr_info *info, size_t, void *) {
    uint64_t here = (uint64_t)&find_library, low = UINT64_MAX, high = 0, write_from = UINT64_MAX;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        uint64_t from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr, to = from + info->dlpi_phdr[i].p_memsz;
        low = from < low ? from : low;
        high = to > high ? to : high;
        if (info->dlpi_phdr[i].p_flags & PF_W && from < write_from) write_from = from; // these are the last ones
    }
    if (here < low || here >= high) return 0;
    library_base = low, library_end = high, writable_base = write_from;
    return 1;
}

EXPORT uint64_t hm_library_base(void) {
    if (!library_base) dl_iterate_phdr(find_library, nullptr);
    return library_base;
}
EXPORT uint64_t hm_static_shared(uint64_t *bytes) {
    *bytes = (uint64_t)(__stop_hm_shared - __start_hm_shared);
    return (uint64_t)__start_hm_shared;
}
EXPORT uint64_t hm_dynamic_shared(void) { return (uint64_t)hm_dynamic; }

static void forget(void) { // what an earlier traced launch left
    sites.release(), samples.release(), problems.release();
    free(site_table), site_table = nullptr, site_table_size = 0;
    free(site_samples), site_samples = nullptr, site_samples_room = 0;
    for (uint32_t w = 0; w < MAX_THREADS / WARP_LANES; w++) {
        for (uint32_t i = 0; i < pending_room[w]; i++) free(pending[w][i].at);
        free(pending[w]), pending[w] = nullptr, pending_room[w] = 0;
    }
}

static void *map_zeros(uint64_t bytes) {
    void *p = mmap(nullptr, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

EXPORT void hm_forget(void) {
    forget();
    for (uint32_t i = 0; i < MAX_THREADS; i++) free(threads[i].copies), threads[i].copies = nullptr, threads[i].copy_room = 0;
    free(output), output = nullptr, output_length = 0;
}

// Runs a launch whose arguments Python has checked. Returns launch->error; -1 if there is not enough memory.
EXPORT int hm_run(Launch *l) {
    launch = l;
    n_threads = l->block[0] * l->block[1] * l->block[2];
    memcpy(hm_blockDim, l->block, sizeof hm_blockDim);
    memcpy(hm_gridDim, l->grid, sizeof hm_gridDim);
    hm_library_base();
    for (uint32_t i = 0; i < n_threads; i++) {
        Thread &t = threads[i];
        t.id = i;
        t.index[0] = i % l->block[0], t.index[1] = i / l->block[0] % l->block[1], t.index[2] = i / l->block[0] / l->block[1];
        order[i] = l->order ? l->order[i] : (uint16_t)i;
    }
    uint64_t static_bytes = (uint64_t)(__stop_hm_shared - __start_hm_shared);
    if (l->mode != PLAIN) forget();
    if (l->mode == CHECK) {
        shadow_static = (Cell *)map_zeros(static_bytes * sizeof(Cell));
        written_static = (uint32_t *)map_zeros(static_bytes * 4);
        shadow_dynamic = (Cell *)map_zeros(l->dynamic_bytes * sizeof(Cell));
        written_dynamic = (uint32_t *)map_zeros(l->dynamic_bytes * 4);
        shadow_arrays = (Cell **)calloc(l->n_regions + 1, sizeof *shadow_arrays);
        if (!shadow_static || !written_static || !shadow_dynamic || !written_dynamic || !shadow_arrays) return -1;
        for (uint64_t i = 0; i < l->n_regions; i++) {
            shadow_arrays[i] = (Cell *)map_zeros((l->regions[i].size / l->regions[i].granule + 1) * sizeof(Cell));
            if (!shadow_arrays[i]) return -1;
        }
    }
    uint64_t page = (uint64_t)getpagesize(), open = (l->dynamic_bytes + page - 1) / page * page;
    if (l->mode == PLAIN) mprotect(hm_dynamic + open, sizeof hm_dynamic - open, PROT_NONE);

    static uint8_t signal_stack[64 * 1024];
    stack_t mine = {}, before = {};
    mine.ss_sp = signal_stack, mine.ss_size = sizeof signal_stack;
    sigaltstack(&mine, &before);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    launcher = pthread_self();
    interrupted = busy = 0;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &saved[i]);
    if (!sigsetjmp(escape, 1)) {
        running = 1;
        run_blocks();
    }
    running = 0;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &saved[i], nullptr);
    sigaltstack(&before, nullptr);
    memcpy(l->block_index, hm_blockIdx, sizeof hm_blockIdx);
    if (l->mode == PLAIN) mprotect(hm_dynamic + open, sizeof hm_dynamic - open, PROT_READ | PROT_WRITE);
    if (interrupted) l->error = INTERRUPT;
    return l->error;
}

static void unmap_zeros(void *p, uint64_t bytes) {
    if (p) munmap(p, bytes ? bytes : 1);
}

// Frees what hm_run keeps of a checked launch for hm_last_writer.
EXPORT void hm_end_check(void) {
    uint64_t static_bytes = (uint64_t)(__stop_hm_shared - __start_hm_shared);
    unmap_zeros(shadow_static, static_bytes * sizeof(Cell)), shadow_static = nullptr;
    unmap_zeros(written_static, static_bytes * 4), written_static = nullptr;
    unmap_zeros(shadow_dynamic, launch->dynamic_bytes * sizeof(Cell)), shadow_dynamic = nullptr;
    unmap_zeros(written_dynamic, launch->dynamic_bytes * 4), written_dynamic = nullptr;
    for (uint64_t i = 0; shadow_arrays && i < launch->n_regions; i++)
        unmap_zeros(shadow_arrays[i], (launch->regions[i].size / launch->regions[i].granule + 1) * sizeof(Cell));
    free(shadow_arrays), shadow_arrays = nullptr;
}

EXPORT const Site *hm_sites(uint64_t *n) { return *n = sites.n, sites.at; }
EXPORT const Sample *hm_samples(uint64_t *n) { return *n = samples.n, samples.at; }
EXPORT const Problem *hm_problems(uint64_t *n) { return *n = problems.n, problems.at; }
// The program counter that wrote an element of an array last; 0 if none did. Between hm_run and hm_end_check.
EXPORT uint64_t hm_last_writer(uint64_t region, uint64_t offset) {
    uint32_t site = shadow_arrays[region][offset / launch->regions[region].granule].write.site;
    return site ? sites.at[site - 1].pc : 0;
}

// ---- memory: stacks with a guard page below, arrays with inaccessible pages around

EXPORT uint8_t *hm_map_stacks(uint64_t stack_bytes) {
    uint8_t *p = (uint8_t *)mmap(nullptr, stack_bytes * MAX_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    for (uint32_t i = 0; i < MAX_THREADS; i++) mprotect(p + i * stack_bytes, (size_t)getpagesize(), PROT_NONE);
    return p;
}

// `guard` bytes, then `bytes` (whole pages) that can be used, then `guard` bytes; returns the usable part.
EXPORT uint8_t *hm_map_guarded(uint64_t bytes, uint64_t guard, int open_guards) {
    int guards = open_guards ? PROT_READ | PROT_WRITE : PROT_NONE;
    uint8_t *p = (uint8_t *)mmap(nullptr, bytes + 2 * guard, guards, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    if (bytes && mprotect(p + guard, bytes, PROT_READ | PROT_WRITE)) {
        munmap(p, bytes + 2 * guard);
        return nullptr;
    }
    return p + guard;
}
EXPORT void hm_unmap_guarded(uint8_t *p, uint64_t bytes, uint64_t guard) { munmap(p - guard, bytes + 2 * guard); }

// ---- the ThreadSanitizer interface: what the compiler calls before every access of a traced build

#define HOOK(NAME, SIZE)                                                                                               \
    HIDDEN void __tsan_read##NAME(void *a) { access(a, SIZE, READ, __builtin_return_address(0)); }                     \
    HIDDEN void __tsan_write##NAME(void *a) { access(a, SIZE, WRITE, __builtin_return_address(0)); }                   \
    HIDDEN void __tsan_unaligned_read##NAME(void *a) { access(a, SIZE, READ, __builtin_return_address(0)); }           \
    HIDDEN void __tsan_unaligned_write##NAME(void *a) { access(a, SIZE, WRITE, __builtin_return_address(0)); }         \
    HIDDEN void __tsan_volatile_read##NAME(void *a) { access(a, SIZE, READ, __builtin_return_address(0)); }            \
    HIDDEN void __tsan_volatile_write##NAME(void *a) { access(a, SIZE, WRITE, __builtin_return_address(0)); }
HOOK(1, 1) HOOK(2, 2) HOOK(4, 4) HOOK(8, 8) HOOK(16, 16)
HIDDEN void __tsan_read_range(void *a, unsigned long n) { access(a, n, READ, __builtin_return_address(0)); }
HIDDEN void __tsan_write_range(void *a, unsigned long n) { access(a, n, WRITE, __builtin_return_address(0)); }
HIDDEN void *__tsan_memcpy(void *to, const void *from, unsigned long n) {
    access(from, n, READ, __builtin_return_address(0));
    access(to, n, WRITE, __builtin_return_address(0));
    return memcpy(to, from, n);
}
HIDDEN void *__tsan_memmove(void *to, const void *from, unsigned long n) {
    access(from, n, READ, __builtin_return_address(0));
    access(to, n, WRITE, __builtin_return_address(0));
    return memmove(to, from, n);
}
HIDDEN void *__tsan_memset(void *to, int v, unsigned long n) {
    access(to, n, WRITE, __builtin_return_address(0));
    return memset(to, v, n);
}
HIDDEN void __tsan_init(void) {}
HIDDEN void __tsan_func_entry(void *) {}
HIDDEN void __tsan_func_exit(void) {}
