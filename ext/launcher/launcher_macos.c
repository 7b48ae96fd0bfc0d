/* The process between the host and one sidecar, on macOS.
 *
 * Arguments and messages are those of launcher_linux.c, over a SOCK_STREAM socket, as local sockets
 * have no SOCK_SEQPACKET here: each message is three int32_t. The ends of host and program are
 * seen by kqueue. There is no subreaper: what the program has started is found from parent to child
 * before anything is killed, so that a process whose own parent ended earlier is not found, unless it
 * stayed in the program's process group.
 */
#include <errno.h>
#include <fcntl.h>
#include <libproc.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/event.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DESCRIPTORS = 64, MAX_TREE = 4096, GRACE_MS = 400, ROUNDS = 20 };
enum step { STEP_HOST, STEP_FORK, STEP_FOLDER, STEP_EXEC, STEP_USAGE };

struct message {
    int32_t kind, number, step;
};

struct launcher {
    pid_t host, guest;
    int control, queue;
    long max_files, max_data;
    int descriptors[MAX_DESCRIPTORS], ndescriptors;
    const char *folder;
    char **program;
};

static void tell(const struct launcher *self, char kind, int number, int step)
{
    const struct message message = {kind, number, step};
    (void)!write(self->control, &message, sizeof message);
}

static void limit(int resource, rlim_t value)
{
    const struct rlimit limits = {value, value};
    setrlimit(resource, &limits);
}

static _Noreturn void become_program(const struct launcher *self, int report)
{
    struct message failure = {'E', 0, STEP_FOLDER};
    sigset_t none;

    setsid();
    for (int fd = 3; fd < getdtablesize(); fd++) {
        int declared = 0;
        for (int i = 0; i < self->ndescriptors; i++)
            declared |= self->descriptors[i] == fd;
        fcntl(fd, F_SETFD, declared ? 0 : FD_CLOEXEC);
    }
    if (chdir(self->folder) == 0) {
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
        execv(self->program[0], self->program);
    }
    failure.number = errno;
    (void)!write(report, &failure, sizeof failure);
    _exit(127);
}

static int start(struct launcher *self)
{
    struct message failure = {'E', 0, STEP_FORK};
    int report[2];
    ssize_t count = -1;

    if (pipe(report)) {
        tell(self, 'E', errno, STEP_FORK);
        return 0;
    }
    fcntl(report[1], F_SETFD, FD_CLOEXEC);
    self->guest = fork();
    if (self->guest == 0)
        become_program(self, report[1]);
    failure.number = errno;
    close(report[1]);
    if (self->guest > 0) {
        do
            count = read(report[0], &failure, sizeof failure);
        while (count < 0 && errno == EINTR);
        if (count)
            waitpid(self->guest, NULL, 0);
    }
    close(report[0]);
    if (count == 0)
        tell(self, 'S', self->guest, 0);
    else
        tell(self, 'E', failure.number, failure.step);
    return count == 0;
}

/* Kill a process and all below it; it is stopped first, so that it starts no more meanwhile. */
static void kill_below(pid_t pid, int depth)
{
    pid_t children[MAX_TREE];
    const int count = proc_listchildpids(pid, children, sizeof children);

    kill(pid, SIGSTOP);
    for (int i = 0; i < count && depth < 64; i++)
        kill_below(children[i], depth + 1);
    kill(pid, SIGKILL);
}

static void kill_tree(const struct launcher *self)
{
    for (int round = 0; round < ROUNDS; round++) {
        pid_t children[MAX_TREE];
        const int count = proc_listchildpids(getpid(), children, sizeof children);
        if (count <= 0)
            break;
        for (int i = 0; i < count; i++)
            kill_below(children[i], 0);
    }
    kill(-self->guest, SIGKILL);
}

static void watch(const struct launcher *self)
{
    struct kevent changes[3], event;
    const struct timespec grace = {0, GRACE_MS * 1000000L};
    int host_gone = 0, status;

    EV_SET(&changes[0], (uintptr_t)self->guest, EVFILT_PROC, EV_ADD, NOTE_EXIT, 0, NULL);
    EV_SET(&changes[1], (uintptr_t)self->host, EVFILT_PROC, EV_ADD, NOTE_EXIT, 0, NULL);
    EV_SET(&changes[2], (uintptr_t)self->control, EVFILT_READ, EV_ADD, 0, 0, NULL);
    /* One that cannot be watched any more has ended: what follows finds that out. */
    for (int i = 0; i < 3; i++)
        if (kevent(self->queue, &changes[i], 1, NULL, 0, NULL) && i == 1)
            host_gone = 1;
    for (;;) {
        char command = 0;
        if (waitpid(self->guest, &status, WNOHANG) == self->guest) {
            tell(self, 'X', status, 0);
            break;
        }
        if (host_gone || getppid() != self->host) {
            kill(-self->guest, SIGTERM);
            kill(-self->guest, SIGCONT);
            nanosleep(&grace, NULL);
            break;
        }
        if (kevent(self->queue, NULL, 0, &event, 1, NULL) < 1)
            continue;
        if (event.filter == EVFILT_PROC && event.ident == (uintptr_t)self->host)
            host_gone = 1;
        if (event.filter != EVFILT_READ)
            continue;
        if (read(self->control, &command, 1) <= 0)
            host_gone = 1;
        if (command == 'T') {
            kill(-self->guest, SIGTERM);
            kill(-self->guest, SIGCONT);
        }
        if (command == 'K')
            break;
    }
    kill_tree(self);
    if (waitpid(self->guest, &status, 0) == self->guest)
        tell(self, 'X', status, 0);
}

int main(int argc, char **argv)
{
    struct launcher self = {.guest = -1};
    sigset_t all;

    if (argc < 9 || strcmp(argv[7], "--"))
        return 2;
    self.host = (pid_t)atoi(argv[1]);
    self.control = atoi(argv[2]);
    self.max_files = atol(argv[3]);
    self.max_data = atol(argv[4]);
    for (char *text = argv[5]; *text && *text != '-' && self.ndescriptors < MAX_DESCRIPTORS;) {
        self.descriptors[self.ndescriptors++] = (int)strtol(text, &text, 10);
        text += *text == ',';
    }
    self.folder = argv[6];
    self.program = argv + 8;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    signal(SIGCHLD, SIG_DFL);
    setsid();
    fcntl(self.control, F_SETFD, FD_CLOEXEC);
    self.queue = kqueue();
    if (self.queue < 0 || getppid() != self.host)
        return 0;
    if (!start(&self))
        return 1;
    for (int fd = 0; fd <= 2; fd++)
        close(fd);
    for (int i = 0; i < self.ndescriptors; i++)
        close(self.descriptors[i]);
    watch(&self);
    return 0;
}
