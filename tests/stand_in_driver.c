/* libcuda.so.1 without a GPU: what cuda.bindings and tapes call, by the driver's own names and types.

   Memory of the GPU is the host's, so addresses are the same on both sides; copies are done at
   once. A launch is checked against the limits of an H100; of kernels, `exchange` alone does
   something: it copies and sets its flag, as quant/cuda/exchange.py says. An error is a number of
   the real driver's: 1 a bad value, 2 memory, 200 no machine code, 201 no context, 400 a bad
   handle, 712 pinned already. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef unsigned long long Address;
typedef struct { char name[64]; } Function;
typedef struct { double ms; unsigned flags; } Event;

static char the_context;
static __thread void *current;
static const size_t TOTAL = 80ull << 30, HEAD = 4096;
static size_t used;

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index ? 101 : 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGetName(char *name, int n, int device) { snprintf(name, n, "Stand-in H100"); return 0; }
int cuDeviceTotalMem(size_t *bytes, int device) { *bytes = TOTAL; return 0; }
int cuDeviceGetPCIBusId(char *id, int n, int device) { snprintf(id, n, "0000:01:00.0"); return 0; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
    case 75: *value = 9; return 0;       /* compute capability 9.0 */
    case 76: *value = 0; return 0;
    case 97: *value = 232448; return 0;  /* shared memory of a block, if asked for */
    default: *value = 1; return 0;
  }
}

int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &the_context; return 0; }
int cuDevicePrimaryCtxRelease(int device) { return 0; }
int cuDevicePrimaryCtxReset(int device) { return 0; }

int cuCtxSetCurrent(void *context) {
  if (context && context != &the_context) return 201;
  current = context;
  return 0;
}

int cuCtxSynchronize(void) { return current ? 0 : 201; }

/* --- memory: its size lies in a page before it -------------------------------------------------- */

static char *taken(size_t n) {
  char *page = mmap(0, n + HEAD, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (page == MAP_FAILED) return 0;
  *(size_t *)page = n;
  return page + HEAD;
}

static int given_back(char *at) {
  munmap(at - HEAD, *(size_t *)(at - HEAD) + HEAD);
  return 0;
}

int cuMemGetInfo(size_t *free_, size_t *total) {
  *free_ = TOTAL - used, *total = TOTAL;
  return current ? 0 : 201;
}

int cuMemAlloc(Address *at, size_t n) {
  if (!current) return 201;
  if (!n) return 1;
  *at = (Address)taken(n);
  used += n;
  return *at ? 0 : 2;
}

int cuMemFree(Address at) {
  used -= *(size_t *)(at - HEAD);
  return current ? given_back((char *)at) : 201;
}

int cuMemHostAlloc(void **at, size_t n, unsigned flags) {
  *at = taken(n);
  return !current ? 201 : *at ? 0 : 2;
}

int cuMemFreeHost(void *at) { return given_back(at); }

int cuMemHostGetDevicePointer(Address *at, void *host, unsigned flags) {
  *at = (Address)host;
  return flags ? 1 : 0;
}

static struct { uintptr_t start, end; } pinned[64];

int cuMemHostRegister(void *host, size_t n, unsigned flags) {
  uintptr_t start = (uintptr_t)host, end = start + n;
  int gap = -1;
  for (int i = 0; i < 64; i++) {
    if (!pinned[i].end) gap = i;
    else if (start < pinned[i].end && pinned[i].start < end) return 712;
  }
  if (!n || gap < 0) return 1;
  pinned[gap].start = start, pinned[gap].end = end;
  return current ? 0 : 201;
}

int cuMemHostUnregister(void *host) {
  for (int i = 0; i < 64; i++)
    if (pinned[i].end && pinned[i].start == (uintptr_t)host) return pinned[i].end = 0;
  return 713;
}

static int moved(void *to, const void *from, size_t n, void *stream) {
  if (!current || !stream) return current ? 400 : 201;
  memcpy(to, from, n);
  return 0;
}

int cuMemcpyHtoDAsync(Address to, const void *from, size_t n, void *stream) {
  return moved((void *)to, from, n, stream);
}

int cuMemcpyDtoHAsync(void *to, Address from, size_t n, void *stream) {
  return moved(to, (void *)from, n, stream);
}

int cuMemcpyDtoDAsync(Address to, Address from, size_t n, void *stream) {
  return moved((void *)to, (void *)from, n, stream);
}

int cuMemsetD8Async(Address to, unsigned char value, size_t n, void *stream) {
  memset((void *)to, value, n);
  return stream ? 0 : 400;
}

/* --- streams and events ------------------------------------------------------------------------- */

int cuStreamCreate(void **stream, unsigned flags) { return (*stream = malloc(1)) ? 0 : 2; }
int cuStreamDestroy(void *stream) { free(stream); return 0; }
int cuStreamWaitEvent(void *stream, Event *event, unsigned flags) { return stream && event ? 0 : 400; }

int cuEventCreate(Event **event, unsigned flags) {
  *event = calloc(1, sizeof **event);
  (*event)->flags = flags;
  return 0;
}

int cuEventDestroy(Event *event) { free(event); return 0; }
int cuEventQuery(Event *event) { return event->ms ? 0 : 400; }

int cuEventRecord(Event *event, void *stream) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  event->ms = now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
  return stream ? 0 : 400;
}

int cuEventElapsedTime(float *ms, Event *began, Event *ended) {
  if (began->flags || ended->flags) return 400;  /* made without a clock */
  *ms = ended->ms - began->ms + 1e-3;
  return 0;
}

/* --- kernels ------------------------------------------------------------------------------------ */

int cuModuleLoadData(void **module, const void *image) {
  if (memcmp(image, "\177ELF", 4)) return 200;
  *module = malloc(1);
  return 0;
}

int cuModuleUnload(void *module) { free(module); return 0; }

int cuModuleGetFunction(Function **function, void *module, const char *name) {
  *function = malloc(sizeof **function);
  snprintf((*function)->name, sizeof (*function)->name, "%s", name);
  return 0;
}

int cuFuncSetAttribute(Function *function, int attribute, int value) {
  return attribute == 8 && value <= 232448 ? 0 : 1;  /* dynamic shared memory */
}

static int checked(unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared) {
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || gx > 2147483647) return 1;
  return !bx || !by || !bz || bx * by * bz > 1024 || shared > 232448;
}

/* table, n, rows, flag, number */
static void exchanged(const int64_t *a) {
  for (int64_t i = 0; i < a[1]; i++) {
    const int64_t *record = (int64_t *)a[0] + 5 * i;
    for (int64_t row = 0; row < a[2]; row++)
      memcpy((char *)record[2] + record[3] * row, (char *)record[0] + record[1] * row, record[4]);
  }
  if (a[3]) __atomic_store_n((int64_t *)a[3], *(int64_t *)a[4], __ATOMIC_RELEASE);
}

static int is_exchange(const Function *function) { return !strcmp(function->name, "exchange"); }

int cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                   unsigned by, unsigned bz, unsigned shared, void *stream, int64_t **arguments,
                   void **extra) {
  if (!current || !stream) return current ? 400 : 201;
  if (extra || checked(gx, gy, gz, bx, by, bz, shared)) return 1;
  if (is_exchange(function)) {
    int64_t values[5];
    for (int i = 0; i < 5; i++) values[i] = *arguments[i];
    exchanged(values);
  }
  return 0;
}

typedef struct Node { Function *function; int64_t values[5]; struct Node *next; } Node;
typedef struct { Node *first, *last; } Graph;
typedef struct {
  Function *function;
  unsigned gx, gy, gz, bx, by, bz, shared;
  int64_t **arguments;
  void **extra, *kernel, *context;
} Parameters;  /* CUDA_KERNEL_NODE_PARAMS_v2 */

int cuGraphCreate(Graph **graph, unsigned flags) {
  *graph = calloc(1, sizeof **graph);
  return flags ? 1 : 0;
}

int cuGraphDestroy(Graph *graph) { return 0; }  /* what is instantiated from it reads it */

int cuGraphAddKernelNode(Node **node, Graph *graph, Node *const *before, size_t count,
                         const Parameters *p) {
  if (count != (graph->last != 0) || (count && before[0] != graph->last)) return 1;
  if (p->extra || p->kernel || p->context) return 1;
  if (checked(p->gx, p->gy, p->gz, p->bx, p->by, p->bz, p->shared)) return 1;
  Node *made = *node = calloc(1, sizeof *made);
  made->function = p->function;
  if (is_exchange(p->function))
    for (int i = 0; i < 5; i++) made->values[i] = *p->arguments[i];
  *(graph->last ? &graph->last->next : &graph->first) = made;
  graph->last = made;
  return 0;
}

int cuGraphInstantiateWithFlags(Graph **ready, Graph *graph, unsigned long long flags) {
  *ready = graph;
  return flags || !graph->first ? 1 : 0;
}

int cuGraphExecDestroy(Graph *ready) { return 0; }

int cuGraphLaunch(Graph *ready, void *stream) {
  if (!current || !stream) return current ? 400 : 201;
  for (Node *node = ready->first; node; node = node->next)
    if (is_exchange(node->function)) exchanged(node->values);
  return 0;
}

/* --- how cuda.bindings finds all of these ------------------------------------------------------- */

int cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
  static void *self;
  Dl_info here;
  if (!self && dladdr((void *)cuInit, &here)) self = dlopen(here.dli_fname, RTLD_LAZY);
  if (!strcmp(name, "cuGraphInstantiate")) name = "cuGraphInstantiateWithFlags";
  *found = dlsym(self, name);
  if (status) *status = !*found;
  return *found ? 0 : 500;
}
