/* A disk that fails on command, for a program that is not to know: loaded before the C library (LD_PRELOAD), it
 * stands between the program and the calls that write files.
 *
 * FAULTY_DISK_BELOW    only files below this directory, and the directory itself, are concerned
 * FAULTY_DISK_CONTROL  a file of five 32-bit numbers in the host's byte order, read at each call:
 *                      0  error number that writes fail with; 0 for none
 *                      1  error number that syncs fail with; 0 for none
 *                      2  milliseconds that a sync takes longer
 *                      3  calls that still succeed before the first one fails; counted down
 *                      4  calls that failed or were delayed; counted up
 * A sync that fails has not synced. Other errors of the real calls pass through.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    _Atomic uint32_t write_error;
    _Atomic uint32_t sync_error;
    _Atomic uint32_t sync_delay_ms;
    _Atomic uint32_t spared;
    _Atomic uint32_t hits;
};

static struct control *control;
static char below[4096];

__attribute__((constructor)) static void begin(void)
{
    const char *directory = getenv("FAULTY_DISK_BELOW");
    const char *path = getenv("FAULTY_DISK_CONTROL");
    if (!directory || !path || strlen(directory) >= sizeof below)
        return;
    strcpy(below, directory);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        control = mapped;
}

static int concerned(int file)
{
    char link[64], path[sizeof below + 1];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    size_t wanted = strlen(below);
    if (length < (ssize_t)wanted || strncmp(path, below, wanted) != 0)
        return 0;
    return length == (ssize_t)wanted || path[wanted] == '/';
}

/* Whether this call is to fail; counts it. */
static int strikes(void)
{
    uint32_t spared = atomic_load(&control->spared);
    while (spared > 0)
        if (atomic_compare_exchange_weak(&control->spared, &spared, spared - 1))
            return 0;
    atomic_fetch_add(&control->hits, 1);
    return 1;
}

static int write_fails(int file)
{
    uint32_t error = control ? atomic_load(&control->write_error) : 0;
    if (error == 0 || !concerned(file) || !strikes())
        return 0;
    errno = (int)error;
    return 1;
}

static int sync_fails(int file)
{
    uint32_t error = control ? atomic_load(&control->sync_error) : 0;
    uint32_t delay = control ? atomic_load(&control->sync_delay_ms) : 0;
    if ((error == 0 && delay == 0) || !concerned(file) || !strikes())
        return 0;
    struct timespec time = {delay / 1000, (long)(delay % 1000) * 1000000};
    while (nanosleep(&time, &time) != 0 && errno == EINTR)
        ;
    if (error == 0)
        return 0;
    errno = (int)error;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define WRITE_CALL(name, parameters, arguments)     \
    ssize_t name parameters                         \
    {                                               \
        static __typeof__(&name) real;              \
        if (!real)                                  \
            real = REAL(name);                      \
        if (write_fails(file))                      \
            return -1;                              \
        return real arguments;                      \
    }

#define SYNC_CALL(name)                             \
    int name(int file)                              \
    {                                               \
        static __typeof__(&name) real;              \
        if (!real)                                  \
            real = REAL(name);                      \
        if (sync_fails(file))                       \
            return -1;                              \
        return real(file);                          \
    }

WRITE_CALL(write, (int file, const void *bytes, size_t length), (file, bytes, length))
WRITE_CALL(pwrite, (int file, const void *bytes, size_t length, off_t at), (file, bytes, length, at))
WRITE_CALL(pwrite64, (int file, const void *bytes, size_t length, off64_t at), (file, bytes, length, at))
WRITE_CALL(writev, (int file, const struct iovec *parts, int count), (file, parts, count))
WRITE_CALL(pwritev, (int file, const struct iovec *parts, int count, off_t at), (file, parts, count, at))
WRITE_CALL(pwritev64, (int file, const struct iovec *parts, int count, off64_t at), (file, parts, count, at))
SYNC_CALL(fsync)
SYNC_CALL(fdatasync)
