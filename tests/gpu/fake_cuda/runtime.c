/* A CUDA runtime without a card: memory is the host's, kernels do nothing, calls are counted.

   It proves structure only. Calls that CUDA forbids during a capture are refused. A copy to the
   host brings zeros, since nothing has been computed, and ones if it is a single byte: a comparison
   that the host reads is true. `fake_cuda_*` at the end are for tests (counts.py).

   The device is as late as the host permits: work is over once something has waited for it. Until
   then queries answer "not ready", pinned memory that is copied to holds NaN, pinned memory that is
   copied from must not change, and the loss of the device is not noticed. Two accesses to memory, of
   which one writes and neither waits for the other, are a race: those of copies, of memsets and of
   ONNX Runtime's kernels, whose parameters are plain pointers. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "cuda_runtime_api.h"
#undef cudaGetDeviceProperties

#define API __attribute__((visibility("default")))

/* ---- counts; counts.py has the same order ---- */

enum count {
    LAUNCHES,       /* kernels and memsets outside of graphs */
    CAPTURED,       /* those that became part of a graph */
    STRAY,          /* launched by a capturing thread into a stream that is not captured */
    REPLAYS,        /* launches of graphs */
    PREFERRED,      /* those captured and launched in a stream of priority */
    TO_DEVICE,      /* copies */
    TO_HOST,
    ON_DEVICE,
    WAITS,          /* of the host for the device */
    WAITS_FOR_ALL,  /* those for the device, or for a stream of priority, which the decoder uses */
    EVENTS,         /* recorded in a stream of priority */
    ALLOCATIONS,    /* of device memory */
    FREES,
    PINNED,         /* allocations of pinned memory */
    CAPTURES,       /* graphs */
    ILLEGAL,        /* calls refused during a capture */
    RACES,          /* accesses without an order */
    PAGEABLE,       /* copies from or to memory of the host that is not pinned, which wait */
    BYTES,          /* of device memory in use */
    NUM_COUNTS
};
static atomic_long counts[NUM_COUNTS];

static int setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

static int is_traced(void) {
    static int traced = -1;
    if (traced < 0) traced = setting("FAKE_CUDA_TRACE", 0);
    return traced;
}

/* ---- errors: a lost device fails every call until the process ends ---- */

static atomic_int lost_code, lost_later; /* the second becomes the first when something waits */
static atomic_long num_succeeding, num_failing; /* allocations from now on: so many succeed, then so many fail */
static __thread cudaError_t last_error;

static cudaError_t fail(cudaError_t code) {
    if (code) last_error = code;
    return code;
}

#define RETURN_IF_LOST() do { if (lost_code) return fail(lost_code); } while (0)

/* ---- captures: at most one at a time ---- */

#define NUM_STREAMS 1024
struct order { unsigned last[NUM_STREAMS]; }; /* the last work of each stream that is over before */
struct stream { int is_captured, number, priority, is_blocking; };
struct event { int is_captured; struct order order; };
struct access { /* of a range of memory, by the work `number` of a stream */
    const char *start, *end, *name;
    int is_write, stream;
    unsigned number;
    enum { ON_DEVICE_ONLY, SOURCE, TARGET } host; /* pinned memory of the host is a source or a target */
    unsigned long digest; /* of a source */
};
struct accesses { struct access *all; int num, room; };
struct graph { long num_nodes; int has_priority; struct accesses accesses; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    int is_active;
    cudaStream_t stream;
    pthread_t thread;
    enum cudaStreamCaptureMode mode;
    unsigned long long id;
    long num_nodes;
    struct accesses accesses;
} capture;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static int is_own_capture(void) { return capture.is_active && pthread_equal(capture.thread, pthread_self()); }

static int is_default(cudaStream_t stream) { return (unsigned long)stream <= 2; }

static int has_priority(cudaStream_t stream) { return !is_default(stream) && ((struct stream *)stream)->priority < 0; }

static int is_captured(cudaStream_t stream) {
    if (!capture.is_active) return 0;
    return stream == capture.stream || (!is_default(stream) && ((struct stream *)stream)->is_captured);
}

/* Return an error if CUDA forbids the call now: a capture in global mode forbids it to all threads. */
static cudaError_t refused(const char *name) {
    if (!capture.is_active || thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    int is_forbidden = is_own_capture() || (capture.mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal);
    if (!is_forbidden) return cudaSuccess;
    counts[ILLEGAL]++;
    fprintf(stderr, "fake CUDA: %s is forbidden during a capture\n", name);
    return fail(cudaErrorStreamCaptureUnsupported);
}

#define REFUSE_IN_CAPTURE(name) do { RETURN_IF_LOST(); cudaError_t e_ = refused(name); if (e_) return e_; } while (0)

/* ---- kernels and library calls, counted by name ---- */

#define NUM_NAMES (1 << 18)
static struct { const void *key; const char *name, *pointers; } names[NUM_NAMES];

static unsigned place_of(const void *key) {
    unsigned place = ((unsigned long)key >> 2) * 2654435761u % NUM_NAMES;
    while (names[place].key && names[place].key != key) place = (place + 1) % NUM_NAMES;
    return place;
}

static void name_kernel(const void *key, const char *name) {
    pthread_mutex_lock(&lock);
    unsigned place = place_of(key);
    names[place].name = name;
    names[place].key = key;
    pthread_mutex_unlock(&lock);
}

/* Return a letter for each parameter of ONNX Runtime's kernels: r and w for pointers, else -. */
static const char *pointers_of(unsigned place) {
    static char *(*demangle)(const char *, char *, size_t *, int *);
    if (names[place].pointers) return names[place].pointers;
    char *letters = calloc(1, 64);
    names[place].pointers = letters;
    if (!demangle) demangle = dlsym(RTLD_DEFAULT, "__cxa_demangle");
    int failure = 1, depth = 0;
    char *text = demangle && strstr(names[place].name, "onnxruntime") ? demangle(names[place].name, 0, 0, &failure) : 0;
    char *end = failure ? 0 : strrchr(text, ')'), *start = end;
    for (; start && start > text; start--) {
        if (strchr(")>}", *start)) depth++;
        if (strchr("(<{", *start) && !--depth) break;
    }
    for (char *at = start; end && at <= end && strlen(letters) < 63; at++) {
        if (depth == 1 && (*at == ',' || at == end))
            letters[strlen(letters)] = at[-1] != '*' ? '-' : at - 6 > start && !strncmp(at - 6, "const*", 6) ? 'r' : 'w';
        if (strchr("(<{", *at)) depth++;
        if (strchr(")>}", *at)) depth--;
    }
    return letters;
}

static void note_launch(const char *name, const char *letters, void **parameters, cudaStream_t stream);

static void count_launch(const void *key, const char *name, cudaStream_t stream, int has_stream, void **parameters) {
    unsigned place = place_of(key);
    if (!names[place].key) { name_kernel(key, name ? name : "?"); place = place_of(key); }
    if (has_stream ? is_captured(stream) : is_own_capture()) {
        counts[CAPTURED]++;
        capture.num_nodes++;
    } else {
        counts[LAUNCHES]++;
        /* nothing has been computed: the assertion is false */
        if (strstr(names[place].name, "assert_async")) lost_later = 710;
        if (is_own_capture()) {
            counts[STRAY]++;
            fprintf(stderr, "fake CUDA: %s is launched beside the capture\n", names[place].name);
        }
    }
    if (is_traced()) fprintf(stderr, "fake CUDA: launch %s%s\n", names[place].name, is_own_capture() ? " (captured)" : "");
    if (has_stream) note_launch(names[place].name, parameters ? pointers_of(place) : "", parameters, stream);
}

/* A call of cuBLAS or cuDNN (libraries.c) that launches kernels into the stream of its handle. */
void fake_cuda_library_call(const char *name) { count_launch(name, name, 0, 0, 0); }

/* ---- memory ---- */

struct block { char *start; size_t size; int is_host; struct block *next; };
#define NUM_LISTS 4096
static struct block *blocks;

struct card { int pid; long bytes; }; /* what each process on the card uses */
#define NUM_PROCESSES 64
static struct card *card;

static size_t total_bytes(void) {
    static size_t total;
    if (!total) total = (size_t)setting("FAKE_CUDA_MEMORY_MB", 80000) << 20;
    return total;
}

/* FAKE_CUDA_CARD names a file through which processes share a card. */
static void share_card(void) {
    static int is_tried;
    const char *path = getenv("FAKE_CUDA_CARD");
    if (is_tried || !path) return;
    is_tried = 1;
    int file = open(path, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, NUM_PROCESSES * sizeof *card)) return;
    void *shared = mmap(0, NUM_PROCESSES * sizeof *card, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (shared != MAP_FAILED) card = shared;
}

static long bytes_of_others(void) {
    long others = 0;
    share_card();
    for (int i = 0; card && i < NUM_PROCESSES; i++) {
        if (!card[i].pid || card[i].pid == getpid()) continue;
        if (kill(card[i].pid, 0) && errno == ESRCH) card[i].pid = 0;
        else others += card[i].bytes;
    }
    return others;
}

static void publish_bytes(void) {
    share_card();
    int own = -1;
    for (int i = 0; card && i < NUM_PROCESSES; i++)
        if (card[i].pid == getpid()) own = i;
    for (int i = 0; card && own < 0 && i < NUM_PROCESSES; i++) {
        int nobody = 0;
        if (__atomic_compare_exchange_n(&card[i].pid, &nobody, getpid(), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) own = i;
    }
    if (own >= 0) card[own].bytes = counts[BYTES];
}

static struct block *block_of(const void *pointer) {
    for (struct block *each = blocks; each; each = each->next)
        if ((char *)pointer >= each->start && (char *)pointer < each->start + (each->size ? each->size : 1)) return each;
    return 0;
}

static void add_block(void *start, size_t size, int is_host) {
    struct block *added = malloc(sizeof *added);
    *added = (struct block){start, size, is_host, 0};
    pthread_mutex_lock(&lock);
    added->next = blocks;
    blocks = added;
    if (!is_host) { counts[BYTES] += size; publish_bytes(); }
    pthread_mutex_unlock(&lock);
}

static size_t remove_block(void *start) {
    size_t size = 0;
    pthread_mutex_lock(&lock);
    for (struct block **each = &blocks; *each; each = &(*each)->next) {
        if ((*each)->start != start) continue;
        struct block *removed = *each;
        size = removed->size ? removed->size : 1;
        if (!removed->is_host) { counts[BYTES] -= removed->size; publish_bytes(); }
        *each = removed->next;
        free(removed);
        break;
    }
    pthread_mutex_unlock(&lock);
    return size;
}

static int is_on_device(const void *pointer) {
    pthread_mutex_lock(&lock);
    struct block *found = block_of(pointer);
    int is_device = found && !found->is_host;
    pthread_mutex_unlock(&lock);
    return is_device;
}

/* ---- order: all threads are one host, as they hand work over by locks ---- */

static pthread_mutex_t order_lock = PTHREAD_MUTEX_INITIALIZER;
static struct order host, streams[NUM_STREAMS];
static int num_streams = 1; /* the default stream is the first */
static char is_blocking[NUM_STREAMS];
static struct accesses ongoing; /* those that the host has not waited for */

static int number_of(cudaStream_t stream) { return is_default(stream) ? 0 : ((struct stream *)stream)->number; }

static void join(struct order *order, const struct order *other) {
    for (int i = 0; i < num_streams; i++)
        if (order->last[i] < other->last[i]) order->last[i] = other->last[i];
}

static int is_over(const struct access *access, const struct order *order) { return access->number <= order->last[access->stream]; }

static unsigned long digest_of(const char *start, size_t size) {
    unsigned long digest = 14695981039346656037ul;
    for (size_t i = 0; i < size; i += size > 4096 ? 509 : 1) digest = (digest ^ (unsigned char)start[i]) * 1099511628211ul;
    return digest;
}

static void report_race(const struct access *access, const char *other) {
    counts[RACES]++;
    fprintf(stderr, "fake CUDA: race of %s of stream %d with %s, %ld bytes\n", access->name, access->stream, other, (long)(access->end - access->start));
}

static void append(struct accesses *accesses, struct access added) {
    if (accesses->num == accesses->room) accesses->all = realloc(accesses->all, (accesses->room = 2 * accesses->room + 64) * sizeof added);
    accesses->all[accesses->num++] = added;
}

/* Note an access of the last work of a stream; or of a graph, if the stream is captured. */
static void note(struct access access, cudaStream_t stream) {
    if (is_captured(stream)) {
        append(&capture.accesses, access);
        return;
    }
    access.stream = number_of(stream);
    access.number = streams[access.stream].last[access.stream];
    for (int i = 0; i < ongoing.num; i++) {
        struct access *other = &ongoing.all[i];
        int is_shared = other->start < access.end && access.start < other->end;
        if (is_shared && (other->is_write || access.is_write) && !is_over(other, &streams[access.stream])) report_race(other, access.name);
    }
    append(&ongoing, access);
}

/* Begin the next work of a stream. */
static void begin(cudaStream_t stream) {
    if (is_captured(stream)) return;
    int own = number_of(stream);
    join(&streams[own], &host);
    if (is_blocking[own]) join(&streams[own], &streams[0]);
    for (int i = 1; !own && i < num_streams; i++)
        if (is_blocking[i]) join(&streams[0], &streams[i]);
    streams[own].last[own]++;
}

static void note_launch(const char *name, const char *letters, void **parameters, cudaStream_t stream) {
    pthread_mutex_lock(&order_lock);
    begin(stream);
    for (int i = 0; letters[i]; i++) {
        if (letters[i] == '-') continue;
        const char *start = *(char **)parameters[i];
        note((struct access){start, start + 1, name, letters[i] == 'w'}, stream);
    }
    pthread_mutex_unlock(&order_lock);
}

/* The host has waited for what is over in `order`: copies to it bring their values. */
static void finish(const struct order *order) {
    pthread_mutex_lock(&order_lock);
    join(&host, order);
    int num = 0;
    for (int i = 0; i < ongoing.num; i++) {
        struct access *access = &ongoing.all[i];
        size_t size = access->end - access->start;
        if (!is_over(access, &host)) {
            ongoing.all[num++] = *access;
            continue;
        }
        if (access->host == TARGET) memset((char *)access->start, size == 1, size);
        if (access->host == SOURCE && access->digest != digest_of(access->start, size)) report_race(access, "the host");
    }
    ongoing.num = num;
    pthread_mutex_unlock(&order_lock);
}

static void forget(const char *start, size_t size) { /* memory that is unmapped */
    pthread_mutex_lock(&order_lock);
    int num = 0;
    for (int i = 0; i < ongoing.num; i++)
        if (ongoing.all[i].start >= start + size || ongoing.all[i].end <= start) ongoing.all[num++] = ongoing.all[i];
    ongoing.num = num;
    pthread_mutex_unlock(&order_lock);
}

static void finish_all(void) {
    static struct order all;
    for (int i = 0; i < num_streams; i++) all.last[i] = streams[i].last[i];
    finish(&all);
}

static int is_in_block(const void *pointer) {
    pthread_mutex_lock(&lock);
    int is_known = block_of(pointer) != 0;
    pthread_mutex_unlock(&lock);
    return is_known;
}

API cudaError_t cudaMalloc(void **pointer, size_t size) {
    REFUSE_IN_CAPTURE("cudaMalloc");
    *pointer = 0;
    counts[ALLOCATIONS]++;
    if (num_failing > 0 && num_succeeding-- <= 0) {
        num_failing--;
        return fail(cudaErrorMemoryAllocation);
    }
    if (counts[BYTES] + bytes_of_others() + size > total_bytes()) return fail(cudaErrorMemoryAllocation);
    void *start = mmap(0, size ? size : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
    add_block(*pointer = start, size, 0);
    return cudaSuccess;
}
API cudaError_t cudaFree(void *pointer) {
    if (!pointer) return cudaSuccess;
    REFUSE_IN_CAPTURE("cudaFree");
    counts[FREES]++;
    finish_all();
    size_t size = remove_block(pointer);
    if (size) munmap(pointer, size);
    return cudaSuccess;
}
API cudaError_t cudaMallocAsync(void **pointer, size_t size, cudaStream_t stream) { return cudaMalloc(pointer, size); }
API cudaError_t cudaMallocFromPoolAsync(void **pointer, size_t size, cudaMemPool_t pool, cudaStream_t stream) { return cudaMalloc(pointer, size); }
API cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) { return cudaFree(pointer); }
API cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    REFUSE_IN_CAPTURE("cudaHostAlloc");
    counts[PINNED]++;
    if (posix_memalign(pointer, 4096, size ? size : 1)) return fail(cudaErrorMemoryAllocation);
    add_block(*pointer, size, 1);
    return cudaSuccess;
}
API cudaError_t cudaMallocHost(void **pointer, size_t size) { return cudaHostAlloc(pointer, size, 0); }
API cudaError_t cudaFreeHost(void *pointer) {
    forget(pointer, remove_block(pointer));
    free(pointer);
    return cudaSuccess;
}
API cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned flags) { add_block(pointer, size, 1); return cudaSuccess; }
API cudaError_t cudaHostUnregister(void *pointer) { remove_block(pointer); return cudaSuccess; }
API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    RETURN_IF_LOST();
    *total = total_bytes();
    *free_bytes = *total - counts[BYTES] - bytes_of_others();
    return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    pthread_mutex_lock(&lock);
    struct block *found = block_of(pointer);
    if (found) {
        attributes->type = found->is_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
        attributes->devicePointer = (void *)pointer;
        attributes->hostPointer = found->is_host ? (void *)pointer : 0;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* ---- copies ---- */

static cudaError_t copy(void *target, const void *source, size_t size, cudaStream_t stream) {
    RETURN_IF_LOST();
    int from_device = is_on_device(source), to_device = is_on_device(target), is_recorded = is_captured(stream);
    const char *host_side = from_device ? target : source;
    int is_pinned = from_device != to_device && is_in_block(host_side);
    if (is_recorded) counts[CAPTURED]++, capture.num_nodes++;
    else counts[from_device && to_device ? ON_DEVICE : from_device ? TO_HOST : TO_DEVICE]++;
    counts[PAGEABLE] += from_device != to_device && !is_pinned && !is_recorded;
    pthread_mutex_lock(&order_lock);
    begin(stream);
    struct access read = {source, (const char *)source + size, "a copy's source"};
    struct access write = {target, (char *)target + size, "a copy's target", 1};
    if (is_pinned && to_device) read.host = SOURCE, read.digest = digest_of(source, size);
    if (is_pinned && from_device) write.host = TARGET;
    if (from_device || is_pinned) note(read, stream);
    if (to_device || is_pinned) note(write, stream);
    pthread_mutex_unlock(&order_lock);
    if (from_device && !to_device) memset(target, is_pinned ? 0xff : size == 1, size);
    else memmove(target, source, size);
    return cudaSuccess;
}
API cudaError_t cudaMemcpy(void *target, const void *source, size_t size, enum cudaMemcpyKind kind) {
    REFUSE_IN_CAPTURE("cudaMemcpy");
    cudaError_t error = copy(target, source, size, 0);
    return error ? error : cudaStreamSynchronize(0);
}
API cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(target, source, size, stream);
}
API cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width, size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(target, source, 0, stream);
}
static cudaError_t set(void *target, int value, size_t size) {
    size_t page = 4096, first = ((size_t)target + page - 1) / page * page, end = ((size_t)target + size) / page * page;
    /* large zeros take no memory */
    if (!value && end > first + (1 << 20)) {
        madvise((void *)first, end - first, MADV_DONTNEED);
        memset(target, 0, first - (size_t)target);
        memset((void *)end, 0, (size_t)target + size - end);
    } else memset(target, value, size);
    return cudaSuccess;
}
API cudaError_t cudaMemsetAsync(void *target, int value, size_t size, cudaStream_t stream) {
    RETURN_IF_LOST();
    count_launch("memset", "memset", stream, 1, 0);
    pthread_mutex_lock(&order_lock);
    note((struct access){target, (char *)target + size, "a memset", 1}, stream);
    pthread_mutex_unlock(&order_lock);
    return set(target, value, size);
}
API cudaError_t cudaMemset(void *target, int value, size_t size) { return cudaMemsetAsync(target, value, size, 0); }

/* ---- streams and events ---- */

API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    struct stream *made = calloc(1, sizeof *made);
    pthread_mutex_lock(&order_lock);
    if (num_streams == NUM_STREAMS) abort();
    made->number = num_streams++;
    is_blocking[made->number] = !(flags & cudaStreamNonBlocking);
    pthread_mutex_unlock(&order_lock);
    made->priority = priority;
    *stream = (cudaStream_t)made;
    return cudaSuccess;
}
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreateWithPriority(stream, flags, 0); }
API cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0); }
API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = is_default(stream) ? 0 : ((struct stream *)stream)->priority; return cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
API cudaError_t cudaEventCreate(cudaEvent_t *event) { *event = calloc(1, sizeof(struct event)); return cudaSuccess; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    RETURN_IF_LOST();
    ((struct event *)event)->is_captured = is_captured(stream);
    if (has_priority(stream)) counts[EVENTS]++;
    pthread_mutex_lock(&order_lock);
    if (!is_captured(stream)) ((struct event *)event)->order = streams[number_of(stream)];
    pthread_mutex_unlock(&order_lock);
    return cudaSuccess;
}
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { return cudaEventRecord(event, stream); }
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    RETURN_IF_LOST();
    if (capture.is_active && ((struct event *)event)->is_captured && !is_default(stream))
        ((struct stream *)stream)->is_captured = 1;
    pthread_mutex_lock(&order_lock);
    if (!is_captured(stream)) join(&streams[number_of(stream)], &((struct event *)event)->order);
    pthread_mutex_unlock(&order_lock);
    return cudaSuccess;
}

static cudaError_t wait(const char *name, int is_for_all) {
    counts[WAITS]++;
    counts[WAITS_FOR_ALL] += is_for_all;
    if (lost_later) lost_code = lost_later;
    REFUSE_IN_CAPTURE(name);
    if (is_traced()) fprintf(stderr, "fake CUDA: wait %s\n", name);
    return cudaSuccess;
}
static cudaError_t wait_for(const char *name, const struct order *order, int is_for_all) {
    cudaError_t error = wait(name, is_for_all);
    if (!error) finish(order);
    return error;
}
/* Return "not ready", which is no error to remember, until something has waited. */
static cudaError_t query(const char *name, const struct order *order) {
    REFUSE_IN_CAPTURE(name);
    for (int i = 0; i < num_streams; i++)
        if (order->last[i] > host.last[i]) return cudaErrorNotReady;
    return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_for("cudaStreamSynchronize", &streams[number_of(stream)], has_priority(stream)); }
API cudaError_t cudaDeviceSynchronize(void) {
    cudaError_t error = wait("cudaDeviceSynchronize", 1);
    if (!error) finish_all();
    return error;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait_for("cudaEventSynchronize", &((struct event *)event)->order, 0); }
API cudaError_t cudaEventQuery(cudaEvent_t event) { return query("cudaEventQuery", &((struct event *)event)->order); }
API cudaError_t cudaStreamQuery(cudaStream_t stream) { return query("cudaStreamQuery", &streams[number_of(stream)]); }

/* ---- graphs ---- */

API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    RETURN_IF_LOST();
    if (capture.is_active) return fail(cudaErrorIllegalState);
    capture.stream = stream;
    capture.thread = pthread_self();
    capture.mode = mode;
    capture.num_nodes = 0;
    capture.accesses = (struct accesses){0};
    capture.id++;
    capture.is_active = 1;
    return cudaSuccess;
}
API cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph, const cudaGraphNode_t *nodes, const cudaGraphEdgeData *edges, size_t num, enum cudaStreamCaptureMode mode) {
    return cudaStreamBeginCapture(stream, mode);
}
API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    RETURN_IF_LOST();
    struct graph *made = calloc(1, sizeof *made);
    made->num_nodes = capture.num_nodes;
    made->accesses = capture.accesses;
    made->has_priority = has_priority(capture.stream);
    capture.is_active = 0;
    counts[CAPTURES]++;
    *graph = (cudaGraph_t)made;
    return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = is_captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges, size_t *num) {
    static struct graph ongoing;
    cudaStreamIsCapturing(stream, status);
    if (id) *id = capture.id;
    if (graph) *graph = (cudaGraph_t)&ongoing;
    if (dependencies) *dependencies = 0;
    if (num) *num = 0;
    return cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode own = thread_mode;
    thread_mode = *mode;
    *mode = own;
    return cudaSuccess;
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *num) { *num = ((struct graph *)graph)->num_nodes; return cudaSuccess; }
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) { *executable = (cudaGraphExec_t)graph; return cudaSuccess; }
API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) { return cudaGraphInstantiate(executable, graph, flags); }
API cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    RETURN_IF_LOST();
    counts[REPLAYS]++;
    if (((struct graph *)executable)->has_priority && has_priority(stream)) counts[PREFERRED]++;
    struct accesses *accesses = &((struct graph *)executable)->accesses;
    pthread_mutex_lock(&order_lock);
    begin(stream);
    for (int i = 0; i < accesses->num; i++) note(accesses->all[i], stream);
    pthread_mutex_unlock(&order_lock);
    return cudaSuccess;
}

/* ---- the device ---- */

static int capability(void) { return setting("FAKE_CUDA_CAPABILITY", 90); }

API cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
API cudaError_t cudaGetDeviceCount(int *num) { *num = 1; return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int *version) { *version = setting("FAKE_CUDA_DRIVER", 13020); return cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13020; return cudaSuccess; }
API cudaError_t cudaGetLastError(void) { cudaError_t own = lost_code ? lost_code : last_error; last_error = 0; return own; }
API cudaError_t cudaPeekAtLastError(void) { return lost_code ? lost_code : last_error; }
API const char *cudaGetErrorName(cudaError_t error) {
    static __thread char name[32];
    snprintf(name, sizeof name, "cudaError%d", error);
    return name;
}
API const char *cudaGetErrorString(cudaError_t error) {
    switch ((int)error) { /* the driver's wording */
        case 0: return "no error";
        case 2: return "out of memory";
        case 46: return "CUDA-capable device(s) is/are busy or unavailable";
        case 214: return "uncorrectable ECC error encountered";
        case 220: return "uncorrectable NVLink error detected during the execution";
        case 226: return "uncorrectable ECC error encountered and contained";
        case 700: return "an illegal memory access was encountered";
        case 710: return "device-side assert triggered";
        case 719: return "unspecified launch failure";
        case 721: return "tensor memory leak";
        case 900: return "operation not permitted when stream is capturing";
        case 999: return "unknown error";
        default: return "error of the fake runtime";
    }
}
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    memset(found, 0, sizeof *found);
    strcpy(found->name, "a fake card");
    found->totalGlobalMem = total_bytes();
    found->sharedMemPerBlock = 49152;
    found->sharedMemPerBlockOptin = 232448;
    found->sharedMemPerMultiprocessor = 233472;
    found->regsPerBlock = found->regsPerMultiprocessor = 65536;
    found->warpSize = 32;
    found->maxThreadsPerBlock = found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
    found->maxThreadsDim[2] = 64;
    found->maxThreadsPerMultiProcessor = 2048;
    found->maxGridSize[0] = found->memPitch = 2147483647;
    found->maxGridSize[1] = found->maxGridSize[2] = 65535;
    found->major = capability() / 10;
    found->minor = capability() % 10;
    found->multiProcessorCount = 132;
    found->maxBlocksPerMultiProcessor = 32;
    found->l2CacheSize = 50 << 20;
    return cudaSuccess;
}
API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = capability() / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = capability() % 10; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: *value = 1024; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        default: *value = 1;
    }
    return cudaSuccess;
}
API cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device) { snprintf(id, size, "0000:00:00.0"); return cudaSuccess; }
API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) { *pool = calloc(1, 8); return cudaSuccess; }
API cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *pointer, cudaHostFn_t destroy, unsigned count, unsigned flags) { *object = calloc(1, 8); return cudaSuccess; }
API cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) { *pointer = calloc(1, 4096); return cudaSuccess; }
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) { function(data); return cudaSuccess; }

/* ---- kernels ---- */

API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->ptxVersion = found->binaryVersion = capability();
    return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *num, const void *function, int size, size_t shared) { *num = 4; return cudaSuccess; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *num, const void *function, int size, size_t shared, unsigned flags) { *num = 4; return cudaSuccess; }
static cudaError_t launch(const void *function, cudaStream_t stream, void **parameters) {
    RETURN_IF_LOST();
    count_launch(function, 0, stream, 1, parameters);
    return cudaSuccess;
}
API cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **given, size_t shared, cudaStream_t stream) { return launch(function, stream, given); }
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **given, size_t shared, cudaStream_t stream) { return launch((void *)kernel, stream, 0); }
API cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **given, size_t shared, cudaStream_t stream) { return launch(function, stream, given); }
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **given) { return launch(function, config->stream, given); }
API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { *kernel = (cudaKernel_t)function; return cudaSuccess; }
API cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *options, void **values, unsigned num, enum cudaLibraryOption *of_library, void **of_values, unsigned num_of_library) { *library = calloc(1, 8); return cudaSuccess; }
API cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
    *kernel = calloc(1, 8);
    name_kernel(*kernel, strdup(name));
    return cudaSuccess;
}

static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *(void **)stream = pushed.stream;
    return cudaSuccess;
}
API void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
API void __cudaRegisterFatBinaryEnd(void **handle) {}
API void __cudaUnregisterFatBinary(void **handle) {}
API void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name) { name_kernel(function, name); }
API void __cudaRegisterVar(void) {}

/* ---- the driver, as far as it is asked ---- */

static int succeed(void) { return 0; }

static void *entry_point(const char *name) {
    void *found = dlsym(RTLD_DEFAULT, name);
    return found ? found : (void *)succeed;
}
API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    *function = entry_point(name);
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
API int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    *function = entry_point(name);
    if (status) *status = 0;
    return 0;
}
API int cuGetProcAddress(const char *name, void **function, int version, unsigned long long flags) { return cuGetProcAddress_v2(name, function, version, flags, 0); }
API int cuInit(unsigned flags) { return 0; }
API int cuDeviceGetCount(int *num) { *num = 1; return 0; }
API int cuDriverGetVersion(int *version) { return cudaDriverGetVersion(version); }
API int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *is_active) { *flags = 0; *is_active = 1; return 0; }
API int cuDevicePrimaryCtxRetain(void **context, int device) { static int own; *context = &own; return 0; }
API int cuCtxGetCurrent(void **context) { return cuDevicePrimaryCtxRetain(context, 0); }

/* ---- for tests ---- */

API void fake_cuda_counts(long *found) { for (int i = 0; i < NUM_COUNTS; i++) found[i] = counts[i]; }
API void fake_cuda_fail_allocations(long first, long num) { num_succeeding = first - 1, num_failing = num; }
API void fake_cuda_lose_device(int code) { lost_later = code; }
