/* The process between the host and one sidecar, on Linux.
 *
 *     launcher HOST_PID CONTROL MAX_FILES MAX_DATA DESCRIPTORS FOLDER -- PROGRAM [ARGUMENT...]
 *
 * It starts PROGRAM in FOLDER, waits, and sees to it that nothing of what PROGRAM started outlives
 * PROGRAM, nor any of it the host. As the subreaper it becomes the parent of every process whose own
 * parent has ended, in whatever session, so that killing its children until there are none reaches
 * all. The host must start it with all signals blocked, so that no Ctrl-C reaches it.
 *
 * CONTROL is a descriptor of a SOCK_SEQPACKET socket, whose messages are:
 *   to the host   'S', pid         PROGRAM runs; with pidfds of it and of this process, where there are
 *                 'E', errno, step PROGRAM does not run: what failed at the step of `enum step`
 *                 'X', status      PROGRAM has ended; the status as wait() has it
 *   from the host 'T'              send SIGTERM to PROGRAM's process group
 *                 'K'              kill everything
 * Numbers are native int32_t. The end of the socket means the same as the end of the host.
 *
 * MAX_FILES and MAX_DATA are RLIMIT_NOFILE and RLIMIT_DATA of PROGRAM, 0 for what the host has.
 * DESCRIPTORS are further descriptors that PROGRAM gets, with commas in between, or "-".
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4u
#endif

enum {
    MAX_DESCRIPTORS = 64,
    GRACE_MS = 400,       /* between SIGTERM and SIGKILL once the host is gone */
    LOOK_MS = 250,        /* between two looks at the parent where there are no pidfds */
    BUSY_TRIES = 20,      /* a program file that is still open for writing is tried again so often, */
    BUSY_MS = 5,          /* this far apart */
    UNKILLABLE_MS = 60000 /* after which processes that do not even die of SIGKILL are left */
};

enum step { STEP_HOST, STEP_FORK, STEP_FOLDER, STEP_EXEC, STEP_USAGE };

struct message {
    int32_t kind, number, step;
};

struct launcher {
    pid_t host, guest;
    int control, host_fd, child_fd;
    bool guest_ended;
    long max_files, max_data;
    int descriptors[MAX_DESCRIPTORS], ndescriptors;
    const char *folder;
    char **program;
};

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void sleep_ms(long ms)
{
    const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static int open_pidfd(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* Send a message to the host, with up to two descriptors; without one that is -1. */
static void tell(const struct launcher *self, char kind, int number, int step, int fd1, int fd2)
{
    struct message message = {kind, number, step};
    struct iovec part = {&message, sizeof message};
    union {
        struct cmsghdr aligned;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    const int fds[2] = {fd1, fd2};

    if (fd1 >= 0 && fd2 >= 0) {
        memset(&control, 0, sizeof control);
        header.msg_control = control.bytes;
        header.msg_controllen = sizeof control.bytes;
        struct cmsghdr *first = CMSG_FIRSTHDR(&header);
        first->cmsg_level = SOL_SOCKET;
        first->cmsg_type = SCM_RIGHTS;
        first->cmsg_len = CMSG_LEN(sizeof fds);
        memcpy(CMSG_DATA(first), fds, sizeof fds);
    }
    /* The host reads little and rarely, but there is room for all that it is ever told. */
    (void)!sendmsg(self->control, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* -- the program ------------------------------------------------------------------------------ */

static void limit(int resource, rlim_t value)
{
    struct rlimit limits;
    if (getrlimit(resource, &limits))
        return;
    if (limits.rlim_max == RLIM_INFINITY || limits.rlim_max > value)
        limits.rlim_max = value;
    limits.rlim_cur = limits.rlim_max;
    setrlimit(resource, &limits);
}

/* Have all descriptors above 2 closed by exec, but for the declared ones. */
static void keep_declared(const struct launcher *self)
{
    if (syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC)) {
        struct rlimit limits;
        int most = 65536;
        if (!getrlimit(RLIMIT_NOFILE, &limits) && limits.rlim_cur < 65536)
            most = (int)limits.rlim_cur;
        for (int fd = 3; fd < most; fd++)
            fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    for (int i = 0; i < self->ndescriptors; i++)
        fcntl(self->descriptors[i], F_SETFD, 0);
}

/* Become the program; or write which step failed, and how, to `report`. */
static _Noreturn void become_program(const struct launcher *self, pid_t launcher, int report)
{
    struct message failure = {'E', 0, STEP_FOLDER};
    sigset_t none;

    setsid();
    /* Of this process, which has one thread: unlike the host's threads it ends only as a whole. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != launcher)
        _exit(127);
    keep_declared(self);
    if (chdir(self->folder))
        goto failed;
    limit(RLIMIT_CORE, 0);
    if (self->max_files)
        limit(RLIMIT_NOFILE, (rlim_t)self->max_files);
    if (self->max_data)
        limit(RLIMIT_DATA, (rlim_t)self->max_data);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    failure.step = STEP_EXEC;
    for (int tries = 0; tries < BUSY_TRIES; tries++) {
        execv(self->program[0], self->program);
        if (errno != ETXTBSY)
            break;
        sleep_ms(BUSY_MS);
    }
failed:
    failure.number = errno;
    (void)!write(report, &failure, sizeof failure);
    _exit(127);
}

/* Start the program and tell the host; returns whether it runs. */
static bool start(struct launcher *self)
{
    struct message failure = {'E', 0, STEP_FORK};
    const pid_t launcher = getpid();
    int report[2];

    if (pipe2(report, O_CLOEXEC)) {
        tell(self, 'E', errno, STEP_FORK, -1, -1);
        return false;
    }
    self->guest = fork();
    if (self->guest == 0)
        become_program(self, launcher, report[1]);
    failure.number = errno;
    close(report[1]);
    if (self->guest > 0) {
        ssize_t count;
        do
            count = read(report[0], &failure, sizeof failure);
        while (count < 0 && errno == EINTR);
        close(report[0]);
        if (count == 0) {
            const int guest_fd = open_pidfd(self->guest), own_fd = open_pidfd(launcher);
            tell(self, 'S', self->guest, 0, guest_fd, own_fd);
            if (guest_fd >= 0)
                close(guest_fd);
            if (own_fd >= 0)
                close(own_fd);
            return true;
        }
        waitpid(self->guest, NULL, 0);
    }
    tell(self, 'E', failure.number, failure.step, -1, -1);
    return false;
}

/* -- the end ---------------------------------------------------------------------------------- */

/* Reap all that has ended. Returns whether there are children left. */
static bool reap(struct launcher *self)
{
    for (;;) {
        int status;
        const pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);
        if (pid == 0)
            return true;
        if (pid < 0)
            return errno == EINTR;
        if (pid == self->guest && !self->guest_ended) {
            self->guest_ended = true;
            tell(self, 'X', status, 0, -1, -1);
        }
    }
}

/* Kill those processes of /proc whose parent is this one; for kernels without lists of children. */
static void kill_by_parent(pid_t parent)
{
    DIR *processes = opendir("/proc");
    struct dirent *entry;

    while (processes && (entry = readdir(processes))) {
        char path[300], text[512];
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        FILE *file = fopen(path, "re");
        if (!file)
            continue;
        const size_t count = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        text[count] = 0;
        const char *after_name = strrchr(text, ')');
        int of;
        if (after_name && sscanf(after_name, ") %*c %d", &of) == 1 && of == parent)
            kill((pid_t)atoi(entry->d_name), SIGKILL);
    }
    if (processes)
        closedir(processes);
}

/* Kill every child, which makes those that they leave behind children of this process. */
static void kill_children(const struct launcher *self)
{
    const pid_t own = getpid();
    char path[64];
    int child;

    if (!self->guest_ended)
        kill(-self->guest, SIGKILL);
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)own);
    FILE *file = fopen(path, "re");
    if (!file) {
        kill_by_parent(own);
        return;
    }
    /* Not reaped yet, none of them can have passed its number on to somebody else. */
    while (fscanf(file, "%d", &child) == 1)
        kill(child, SIGKILL);
    fclose(file);
}

static void kill_tree(struct launcher *self)
{
    const int64_t until = now_ms() + UNKILLABLE_MS;
    long pause_ms = 0;

    for (;;) {
        kill_children(self);
        if (pause_ms)
            sleep_ms(pause_ms);
        if (!reap(self) || now_ms() > until)
            return;
        pause_ms = pause_ms < 50 ? pause_ms + 1 : 50;
    }
}

static void ask_to_end(const struct launcher *self)
{
    if (self->guest_ended)
        return;
    kill(-self->guest, SIGTERM);
    kill(-self->guest, SIGCONT); /* one that was stopped would not see it */
}

/* Wait for the end of the program or of the host, and do what the host says. */
static void watch(struct launcher *self)
{
    struct pollfd fds[3] = {
        {self->control, POLLIN, 0}, {self->child_fd, POLLIN, 0}, {self->host_fd, POLLIN, 0},
    };
    int64_t kill_at = 0;

    while (!self->guest_ended) {
        int timeout = self->host_fd < 0 ? LOOK_MS : -1;
        char command = 0;
        bool host_gone = false;

        if (kill_at) {
            const int64_t left = kill_at - now_ms();
            if (left <= 0)
                break;
            timeout = (int)left;
        }
        if (poll(fds, 3, timeout) < 0 && errno != EINTR)
            break;
        if (fds[1].revents) {
            struct signalfd_siginfo seen;
            (void)!read(self->child_fd, &seen, sizeof seen);
            reap(self);
        }
        if (fds[0].revents) {
            const ssize_t count = recv(self->control, &command, 1, MSG_DONTWAIT);
            host_gone = count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR);
            if (count == 1 && command == 'T')
                ask_to_end(self);
            if (count == 1 && command == 'K')
                break;
        }
        host_gone |= fds[2].revents != 0 || getppid() != self->host;
        if (host_gone && !kill_at) {
            kill_at = now_ms() + GRACE_MS;
            ask_to_end(self);
            fds[0].fd = fds[2].fd = -1; /* they have no more to tell */
        }
    }
    kill_tree(self);
}

/* -- the beginning ---------------------------------------------------------------------------- */

static bool read_descriptors(struct launcher *self, const char *text)
{
    if (!strcmp(text, "-"))
        return true;
    while (*text && self->ndescriptors < MAX_DESCRIPTORS) {
        char *end;
        self->descriptors[self->ndescriptors++] = (int)strtol(text, &end, 10);
        if (end == text)
            return false;
        text = *end == ',' ? end + 1 : end;
    }
    return !*text;
}

/* Close what was inherited by mistake: another thread of the host may have opened it just then. */
static void close_others(const struct launcher *self)
{
    DIR *open_fds = opendir("/proc/self/fd");
    struct dirent *entry;

    while (open_fds && (entry = readdir(open_fds))) {
        const int fd = atoi(entry->d_name);
        bool wanted = fd <= 2 || fd == self->control || fd == dirfd(open_fds);
        for (int i = 0; i < self->ndescriptors; i++)
            wanted |= fd == self->descriptors[i];
        if (!wanted)
            close(fd);
    }
    if (open_fds)
        closedir(open_fds);
}

/* Let go of the program's pipes, whose ends the host and the program have to see, and of its files. */
static void let_go(const struct launcher *self)
{
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd <= 2; fd++)
        if (null < 0 || dup2(null, fd) < 0)
            close(fd);
    if (null > 2)
        close(null);
    for (int i = 0; i < self->ndescriptors; i++)
        close(self->descriptors[i]);
    (void)!chdir("/");
}

int main(int argc, char **argv)
{
    struct launcher self = {.guest = -1, .host_fd = -1};
    sigset_t all;

    if (argc < 9 || strcmp(argv[7], "--") || !read_descriptors(&self, argv[5]))
        return 2;
    self.host = (pid_t)atoi(argv[1]);
    self.control = atoi(argv[2]);
    self.max_files = atol(argv[3]);
    self.max_data = atol(argv[4]);
    self.folder = argv[6];
    self.program = argv + 8;

    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    signal(SIGCHLD, SIG_DFL); /* ignored, it would reap by itself, and the status would be lost */
    setsid();
    prctl(PR_SET_DUMPABLE, 0); /* or the sidecar could attach to it as a debugger */
    if (prctl(PR_SET_CHILD_SUBREAPER, 1)) {
        tell(&self, 'E', errno, STEP_HOST, -1, -1);
        return 1;
    }
    close_others(&self);
    fcntl(self.control, F_SETFD, FD_CLOEXEC);
    self.host_fd = open_pidfd(self.host);
    /* Asked after that: as long as it is the parent, its number is nobody else's. */
    if (getppid() != self.host)
        return 0;
    sigemptyset(&all);
    sigaddset(&all, SIGCHLD);
    self.child_fd = signalfd(-1, &all, SFD_CLOEXEC | SFD_NONBLOCK);
    if (self.child_fd < 0) {
        tell(&self, 'E', errno, STEP_HOST, -1, -1);
        return 1;
    }
    if (!start(&self))
        return 1;
    let_go(&self);
    watch(&self);
    return 0;
}
