/* Makes one system call of a host's new children fail, or lists them all.
 *
 *     fail_syscall HOST trace          each call of each child, until the child's end
 *     fail_syscall HOST fail N ERRNO   the Nth call of each child is not made, and fails; but a
 *                                      close(2) is made, since one that fails has closed, too
 *
 * Says "ready" once it is attached, then one line per call: its count, number, six arguments,
 * result. It follows the host's main thread alone, whose own calls are left alone, and lets a
 * child go after its Nth call. It runs until a signal ends it; the kernel then detaches it.
 */
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

enum { MOST_CHILDREN = 64 };

static struct child {
    pid_t pid; /* 0: this place is free */
    long calls;
    char call[200]; /* the call that it is in, as text */
} children[MOST_CHILDREN];

static long chosen; /* the call to fail; 0: none */
static int chosen_errno;

static int is_chosen(const struct child *child) { return chosen && child->calls == chosen; }

static struct child *find(pid_t pid)
{
    for (struct child *child = children; child < children + MOST_CHILDREN; child++)
        if (child->pid == pid)
            return child;
    return NULL;
}

/* A child may be killed at any moment, even while it is stopped: ESRCH is no error. */
static void request(int what, pid_t pid, void *address, unsigned long data)
{
    if (ptrace(what, pid, address, data) == -1 && errno != ESRCH) {
        perror("ptrace");
        exit(1);
    }
}

/* Turns the call that is about to be made into none at all. */
static void skip_call(pid_t pid)
{
#if defined(__x86_64__)
    request(PTRACE_POKEUSER, pid, (void *)offsetof(struct user_regs_struct, orig_rax), -1UL);
#elif defined(__aarch64__)
    int none = -1;
    struct iovec number = {&none, sizeof none};
    request(PTRACE_SETREGSET, pid, (void *)NT_ARM_SYSTEM_CALL, (unsigned long)&number);
#else
#error "only x86-64 and aarch64"
#endif
}

static void set_result(pid_t pid, long result)
{
#if defined(__x86_64__)
    request(PTRACE_POKEUSER, pid, (void *)offsetof(struct user_regs_struct, rax), result);
#elif defined(__aarch64__)
    struct user_regs_struct registers;
    struct iovec all = {&registers, sizeof registers};
    request(PTRACE_GETREGSET, pid, (void *)NT_PRSTATUS, (unsigned long)&all);
    registers.regs[0] = result;
    request(PTRACE_SETREGSET, pid, (void *)NT_PRSTATUS, (unsigned long)&all);
#endif
}

/* A child stands at the entry to or the exit from a call. */
static void at_call(struct child *child)
{
    struct __ptrace_syscall_info info;
    int next = PTRACE_SYSCALL;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, child->pid, sizeof info, &info) == -1)
        return; /* it was killed meanwhile */
    if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
        child->calls++;
        int end = sprintf(child->call, "%ld %lu", child->calls, info.entry.nr);
        for (int i = 0; i < 6; i++)
            end += sprintf(child->call + end, " %#lx", info.entry.args[i]);
        if (is_chosen(child) && info.entry.nr != SYS_close)
            skip_call(child->pid);
    } else if (info.op == PTRACE_SYSCALL_INFO_EXIT) {
        long result = info.exit.rval;
        if (is_chosen(child)) {
            result = -chosen_errno;
            set_result(child->pid, result);
            next = PTRACE_DETACH;
        }
        if (!chosen || is_chosen(child))
            printf("%s %ld\n", child->call, result);
    }
    request(next, child->pid, NULL, 0);
    if (next == PTRACE_DETACH)
        child->pid = 0;
}

/* The kernel attaches us to every new child; this is how its first stop is met. */
static struct child *welcome(pid_t pid)
{
    struct child *child = find(0);
    if (child == NULL) {
        fputs("too many children\n", stderr);
        exit(1);
    }
    *child = (struct child){.pid = pid};
    /* What the child itself starts is not our concern. */
    request(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESYSGOOD);
    return child;
}

static void at_stop(pid_t pid, pid_t host, int status)
{
    int signal = WSTOPSIG(status), event = status >> 16;
    struct child *child = NULL;
    if (pid != host) {
        child = find(pid);
        if (child == NULL)
            child = welcome(pid);
        if (signal == (SIGTRAP | 0x80)) {
            at_call(child);
            return;
        }
    }
    if (event == PTRACE_EVENT_STOP && signal != SIGTRAP)
        request(PTRACE_LISTEN, pid, NULL, 0); /* stopped by a signal, and to stay so */
    else /* an event is ours, a signal is passed on */
        request(child ? PTRACE_SYSCALL : PTRACE_CONT, pid, NULL, event ? 0 : signal);
}

int main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[2], "fail") == 0) {
        chosen = atol(argv[3]);
        chosen_errno = atoi(argv[4]);
    } else if (argc != 3 || strcmp(argv[2], "trace") != 0) {
        fputs("usage: fail_syscall HOST trace | fail_syscall HOST fail N ERRNO\n", stderr);
        return 2;
    }
    pid_t host = atoi(argv[1]);
    setlinebuf(stdout);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* a host must not stay attached to what is lost */
    unsigned long options = PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
    if (ptrace(PTRACE_SEIZE, host, NULL, options) == -1) {
        perror("PTRACE_SEIZE");
        return 1;
    }
    puts("ready");
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, __WALL);
        if (pid == -1) {
            perror("waitpid");
            return 1;
        }
        if (WIFSTOPPED(status)) {
            at_stop(pid, host, status);
        } else if (pid == host) {
            return 0;
        } else if (find(pid)) {
            find(pid)->pid = 0;
        }
    }
}
