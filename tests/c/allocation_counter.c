/* Counts what the objects of one call take from Python's allocators; loaded with ctypes.PyDLL.
 *
 * Only the calling thread's requests for memory count, while counter_measure runs. Every function
 * here needs the GIL.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

enum { DOMAINS = 3, KEPT = 64 };

static const PyMemAllocatorDomain DOMAIN[DOMAINS] = {
    PYMEM_DOMAIN_RAW, PYMEM_DOMAIN_MEM, PYMEM_DOMAIN_OBJ};
static PyMemAllocatorEx before[DOMAINS];
static _Thread_local int counting;
static _Thread_local int64_t count;
static size_t sizes[KEPT];

void counter_install(void);
void counter_remove(void);
int64_t counter_measure(PyObject *callable);
size_t counter_size(int64_t index);

/* Count a request, and none that it leads to: pymalloc asks the raw domain for what is large.
 *
 * Returns what `counting` is afterwards.
 */
static int counted(size_t nbytes)
{
    const int outermost = counting;

    if (outermost) {
        if (count < KEPT)
            sizes[count] = nbytes;
        count++;
    }
    counting = 0;
    return outermost;
}

static void *count_malloc(void *context, size_t nbytes)
{
    const PyMemAllocatorEx *real = context;
    const int after = counted(nbytes);
    void *block = real->malloc(real->ctx, nbytes);

    counting = after;
    return block;
}

static void *count_calloc(void *context, size_t nelements, size_t nbytes)
{
    const PyMemAllocatorEx *real = context;
    const int after = counted(nelements * nbytes);
    void *block = real->calloc(real->ctx, nelements, nbytes);

    counting = after;
    return block;
}

static void *count_realloc(void *context, void *block, size_t nbytes)
{
    const PyMemAllocatorEx *real = context;
    const int after = counted(nbytes);
    void *moved = real->realloc(real->ctx, block, nbytes);

    counting = after;
    return moved;
}

static void pass_free(void *context, void *block)
{
    const PyMemAllocatorEx *real = context;

    real->free(real->ctx, block);
}

/* Stand between Python and its allocators, until counter_remove. */
void counter_install(void)
{
    for (int i = 0; i < DOMAINS; i++) {
        PyMemAllocatorEx ours = {&before[i], count_malloc, count_calloc, count_realloc, pass_free};

        PyMem_GetAllocator(DOMAIN[i], &before[i]);
        PyMem_SetAllocator(DOMAIN[i], &ours);
    }
}

void counter_remove(void)
{
    for (int i = 0; i < DOMAINS; i++)
        PyMem_SetAllocator(DOMAIN[i], &before[i]);
}

/* Call without arguments; return how often memory was asked for, -1 where an exception is set. */
int64_t counter_measure(PyObject *callable)
{
    PyObject *result;

    count = 0;
    counting = 1;
    result = PyObject_CallObject(callable, NULL);
    counting = 0;
    if (result == NULL)
        return -1;
    Py_DECREF(result);
    return count;
}

/* Return the size of one of the first requests of the last measurement, in bytes. */
size_t counter_size(int64_t index)
{
    return index >= 0 && index < count && index < KEPT ? sizes[index] : 0;
}
