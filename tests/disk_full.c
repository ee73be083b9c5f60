/* Preloaded into a command: writes below FULL_FOLDER fail with ENOSPC from the FULL_AFTER-th on.

   The number of calls is shared by all processes through the file FULL_COUNT. What belongs to the disk counts: data,
   flushes, new files and folders, new names; what is read, and deleting, does not. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long *count;

static long *shared_count(void) {
  if (!count && getenv("FULL_COUNT")) {
    int fd = REAL(open)(getenv("FULL_COUNT"), O_RDWR);
    if (fd >= 0) count = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (count == MAP_FAILED) count = NULL;
  }
  return count;
}

/* Whether a call on this path has to fail. */
static int full(const char *path) {
  const char *folder = getenv("FULL_FOLDER");
  if (!folder || !path || strncmp(path, folder, strlen(folder)) || !shared_count()) return 0;
  if (__sync_add_and_fetch(count, 1) < atol(getenv("FULL_AFTER"))) return 0;
  errno = ENOSPC;
  return 1;
}

static int full_at(int directory, const char *path) {
  char link[64], base[PATH_MAX], whole[2 * PATH_MAX];
  if (path[0] == '/') return full(path);
  snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
  ssize_t size = readlink(link, base, sizeof base - 1);
  if (size < 0) return 0;
  base[size] = 0;
  snprintf(whole, sizeof whole, "%s/%s", base, path);
  return full(whole);
}

static int full_file(int fd) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return full(path);
}

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list list; \
    va_start(list, flags); \
    mode_t mode = va_arg(list, mode_t); \
    va_end(list); \
    return flags & O_CREAT && full_at(AT_FDCWD, path) ? -1 : REAL(name)(path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int directory, const char *path, int flags, ...) { \
    va_list list; \
    va_start(list, flags); \
    mode_t mode = va_arg(list, mode_t); \
    va_end(list); \
    return flags & O_CREAT && full_at(directory, path) ? -1 : REAL(name)(directory, path, flags, mode); \
  }
#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    return !strchr("r", mode[0]) && full_at(AT_FDCWD, path) ? NULL : REAL(name)(path, mode); \
  }
#define ON_FILE(type, name, parameters, arguments) \
  type name parameters { return full_file(fd) ? -1 : REAL(name) arguments; }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)
ON_FILE(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON_FILE(ssize_t, writev, (int fd, const struct iovec *parts, int number), (fd, parts, number))
ON_FILE(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FILE(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FILE(int, fsync, (int fd), (fd))
ON_FILE(int, fdatasync, (int fd), (fd))
ON_FILE(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FILE(int, ftruncate64, (int fd, off64_t size), (fd, size))

int mkdir(const char *path, mode_t mode) { return full_at(AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode); }

int rename(const char *old, const char *new) { return full_at(AT_FDCWD, new) ? -1 : REAL(rename)(old, new); }
