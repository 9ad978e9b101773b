/* A library to preload: from the n-th change of the disk on, the world is not what a program hopes for.
 *
 *     cc -shared -fPIC -O1 -o faults.so faults.c -ldl
 *
 * fault_arm(root, at, kind) begins to count calls that change something below `root` (`root`/runs apart, which is written
 * by a clock), or, with the root "socket", bytes that are sent. Before the call with number `at`:
 *   KILL  the process is killed
 *   TEAR  the process is killed, and half of what was written and not synced is cut off: a loss of power
 *   FULL  this call and all later ones that need room fail with ENOSPC
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, FULL };
enum { MOST_FILES = 512 };

static char root[4096], apart[4200];
static long wanted = -1, counted = 0;
static int kind = COUNT, armed = 0;

struct written { dev_t device; ino_t inode; int handle; off_t synced; };
static struct written unsynced[MOST_FILES];
static int files = 0;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void fault_arm(const char *where, long at, int what) {
    snprintf(root, sizeof root, "%s", where);
    snprintf(apart, sizeof apart, "%s/runs/", where);
    wanted = at;
    kind = what;
    counted = 0;
    files = 0;
    armed = 1;
}

void fault_disarm(void) { armed = 0; }

long fault_count(void) { return counted; }

static int is_below(const char *path) {
    size_t length = strlen(root);
    if (strncmp(path, root, length) != 0 || (path[length] != '/' && path[length] != 0)) return 0;
    return strncmp(path, apart, strlen(apart)) != 0;
}

static int path_of(int folder, const char *name, char *path, size_t size) {
    char link[64];
    if (name && name[0] == '/') {
        snprintf(path, size, "%s", name);
        return 1;
    }
    ssize_t length;
    if (folder == AT_FDCWD) {
        if (!getcwd(path, size)) return 0;
        length = strlen(path);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, path, size - 1);
        if (length < 0) return 0;
        path[length] = 0;
    }
    if (name) snprintf(path + length, size - length, "/%s", name);
    return 1;
}

static int concerns(int folder, const char *name) {
    char path[8192];
    if (!armed || !path_of(folder, name, path, sizeof path)) return 0;
    return is_below(path);
}

/* What was synced stays; of what was appended since, half. */
static off_t half_of_the_rest(off_t synced, off_t now) {
    return now > synced ? synced + (now - synced) / 2 : now / 2;
}

static void die(void) {
    if (kind == TEAR)
        for (int i = 0; i < files; i++) {
            struct stat now;
            if (fstat(unsynced[i].handle, &now) == 0 &&
                REAL(ftruncate)(unsynced[i].handle, half_of_the_rest(unsynced[i].synced, now.st_size)) != 0)
                perror("tear");
        }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Whether the call is to fail for want of room. */
static int step(int needs_room) {
    long mine = __atomic_fetch_add(&counted, 1, __ATOMIC_SEQ_CST);
    if (wanted < 0 || kind == COUNT) return 0;
    if (kind == FULL) return needs_room && mine >= wanted;
    if (mine == wanted) die();
    return 0;
}

static void note_written(int handle) {
    struct stat file;
    if (kind != TEAR || fstat(handle, &file) != 0 || !S_ISREG(file.st_mode)) return;
    for (int i = 0; i < files; i++)
        if (unsynced[i].inode == file.st_ino && unsynced[i].device == file.st_dev) return;
    if (files == MOST_FILES) return;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", handle);
    int mine = REAL(open)(path, O_WRONLY | O_CLOEXEC); /* a dup would hold the program's locks */
    if (mine >= 0) unsynced[files++] = (struct written){file.st_dev, file.st_ino, mine, file.st_size};
}

static void note_synced(int handle) {
    struct stat file;
    if (kind != TEAR || fstat(handle, &file) != 0) return;
    for (int i = 0; i < files; i++)
        if (unsynced[i].inode == file.st_ino && unsynced[i].device == file.st_dev) {
            REAL(close)(unsynced[i].handle);
            unsynced[i] = unsynced[--files];
            return;
        }
}

static void note_all_synced(void) {
    while (files) REAL(close)(unsynced[--files].handle);
}

#define NO_ROOM return errno = ENOSPC, -1

static int opened(int folder, const char *name, int flags) {
    if (!(flags & (O_WRONLY | O_RDWR | O_CREAT)) || !concerns(folder, name)) return 0;
    int is_new = (flags & O_CREAT) && faccessat(folder, name, F_OK, 0) != 0;
    return step(is_new);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *name, int flags, ...) {
    MODE(flags)
    if (opened(AT_FDCWD, name, flags)) NO_ROOM;
    return REAL(open)(name, flags, mode);
}
int open64(const char *name, int flags, ...) {
    MODE(flags)
    if (opened(AT_FDCWD, name, flags)) NO_ROOM;
    return REAL(open64)(name, flags, mode);
}
int openat(int folder, const char *name, int flags, ...) {
    MODE(flags)
    if (opened(folder, name, flags)) NO_ROOM;
    return REAL(openat)(folder, name, flags, mode);
}
int openat64(int folder, const char *name, int flags, ...) {
    MODE(flags)
    if (opened(folder, name, flags)) NO_ROOM;
    return REAL(openat64)(folder, name, flags, mode);
}

#define WRITES(type, name, parameters, arguments) \
    type name parameters { \
        if (concerns(handle, NULL)) { \
            if (step(1)) NO_ROOM; \
            note_written(handle); \
        } \
        return REAL(name) arguments; \
    }

WRITES(ssize_t, write, (int handle, const void *data, size_t n), (handle, data, n))
WRITES(ssize_t, pwrite, (int handle, const void *data, size_t n, off_t at), (handle, data, n, at))
WRITES(ssize_t, pwrite64, (int handle, const void *data, size_t n, off64_t at), (handle, data, n, at))
WRITES(ssize_t, writev, (int handle, const struct iovec *parts, int n), (handle, parts, n))
WRITES(int, ftruncate, (int handle, off_t size), (handle, size))
WRITES(int, ftruncate64, (int handle, off64_t size), (handle, size))
WRITES(int, posix_fallocate, (int handle, off_t at, off_t n), (handle, at, n))

ssize_t sendfile(int handle, int source, off_t *at, size_t n) {
    if (concerns(handle, NULL)) {
        if (step(1)) NO_ROOM;
        note_written(handle);
    }
    return ((ssize_t(*)(int, int, off_t *, size_t))dlsym(RTLD_NEXT, "sendfile"))(handle, source, at, n);
}
ssize_t sendfile64(int handle, int source, off64_t *at, size_t n) {
    if (concerns(handle, NULL)) {
        if (step(1)) NO_ROOM;
        note_written(handle);
    }
    return ((ssize_t(*)(int, int, off64_t *, size_t))dlsym(RTLD_NEXT, "sendfile64"))(handle, source, at, n);
}
ssize_t copy_file_range(int source, off64_t *from, int handle, off64_t *to, size_t n, unsigned flags) {
    if (concerns(handle, NULL)) {
        if (step(1)) NO_ROOM;
        note_written(handle);
    }
    return REAL(copy_file_range)(source, from, handle, to, n, flags);
}

#define SYNCS(name) \
    int name(int handle) { \
        if (concerns(handle, NULL)) { step(0); note_synced(handle); } \
        return REAL(name)(handle); \
    }
SYNCS(fsync)
SYNCS(fdatasync)

int syncfs(int handle) {
    if (concerns(handle, NULL)) {
        step(0);
        note_all_synced(); /* what is below the root is on one file system */
    }
    return REAL(syncfs)(handle);
}

int rename(const char *from, const char *to) {
    if (concerns(AT_FDCWD, to) && step(1)) NO_ROOM;
    return REAL(rename)(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    if (concerns(b, to) && step(1)) NO_ROOM;
    return REAL(renameat)(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    if (concerns(b, to) && step(1)) NO_ROOM;
    return REAL(renameat2)(a, from, b, to, flags);
}
int unlink(const char *name) {
    if (concerns(AT_FDCWD, name)) step(0);
    return REAL(unlink)(name);
}
int unlinkat(int folder, const char *name, int flags) {
    if (concerns(folder, name)) step(0);
    return REAL(unlinkat)(folder, name, flags);
}
int rmdir(const char *name) {
    if (concerns(AT_FDCWD, name)) step(0);
    return REAL(rmdir)(name);
}
int mkdir(const char *name, mode_t mode) {
    if (concerns(AT_FDCWD, name) && faccessat(AT_FDCWD, name, F_OK, 0) != 0 && step(1)) NO_ROOM;
    return REAL(mkdir)(name, mode);
}
int mkdirat(int folder, const char *name, mode_t mode) {
    if (concerns(folder, name) && step(1)) NO_ROOM;
    return REAL(mkdirat)(folder, name, mode);
}
int symlink(const char *to, const char *name) {
    if (concerns(AT_FDCWD, name) && step(1)) NO_ROOM;
    return REAL(symlink)(to, name);
}

static int is_sent(int handle) {
    struct sockaddr_storage other;
    socklen_t size = sizeof other;
    if (!armed || strcmp(root, "socket") != 0) return 0;
    return getpeername(handle, (struct sockaddr *)&other, &size) == 0 && other.ss_family != AF_UNIX;
}
ssize_t send(int handle, const void *data, size_t n, int flags) {
    if (is_sent(handle)) step(0);
    return REAL(send)(handle, data, n, flags);
}
ssize_t sendmsg(int handle, const struct msghdr *message, int flags) {
    if (is_sent(handle)) step(0);
    return REAL(sendmsg)(handle, message, flags);
}
