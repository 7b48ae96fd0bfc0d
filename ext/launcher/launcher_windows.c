/* The process between the host and one sidecar, on Windows.
 *
 *     launcher HOST READ WRITE MAX_MEMORY HANDLES FOLDER -- PROGRAM [ARGUMENT...]
 *
 * HOST is a handle of the host's process, READ and WRITE are pipes, HANDLES what else PROGRAM gets, with
 * commas in between, or "-": all inherited, as decimal numbers. PROGRAM runs in a job object that is
 * killed with its last handle, which only this process has: whatever ends this process, everything
 * that PROGRAM has started ends, too. It needs Windows 8, where jobs may be nested.
 *
 * Messages are those of launcher_linux.c, three native int32_t: 'S' with the pid, 'E' with
 * GetLastError(), 'X' with the exit code; from the host one byte, 'T' for Ctrl-Break to PROGRAM's
 * group, 'K' to kill everything.
 */
#define WIN32_LEAN_AND_MEAN
#define UNICODE
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0602
#endif
#include <windows.h>

#include <shellapi.h>
#include <stdint.h>
#include <stdlib.h>
#include <wchar.h>

enum { MAX_HANDLES = 64, GRACE_MS = 400, COMMAND_ROOM = 32768 };
enum step { STEP_HOST, STEP_JOB, STEP_FOLDER, STEP_EXEC };

struct launcher {
    HANDLE host, read, write, job, child, asked;
    DWORD pid;
    HANDLE inherited[MAX_HANDLES];
    size_t ninherited;
    volatile LONG command; /* what the host asked for last */
};

static HANDLE handle_of(const wchar_t *text)
{
    return (HANDLE)(uintptr_t)_wcstoui64(text, NULL, 10);
}

static void tell(const struct launcher *self, char kind, DWORD number, int step)
{
    const int32_t message[3] = {kind, (int32_t)number, step};
    DWORD written;
    WriteFile(self->write, message, sizeof message, &written, NULL);
}

/* Append an argument so that the usual rules of splitting give it back. Returns whether there was room. */
static BOOL append(wchar_t *line, size_t *length, const wchar_t *argument)
{
    size_t slashes = 0, at = *length;

    if (at + 2 * wcslen(argument) + 4 > COMMAND_ROOM)
        return FALSE;
    if (at)
        line[at++] = L' ';
    line[at++] = L'"';
    for (; *argument; argument++) {
        slashes = *argument == L'\\' ? slashes + 1 : 0;
        if (*argument == L'"') {
            /* Backslashes before a quote count double; those were written once. */
            size_t before = 0;
            while (at > before && line[at - 1 - before] == L'\\')
                before++;
            for (size_t i = 0; i < before; i++)
                line[at++] = L'\\';
            line[at++] = L'\\';
        }
        line[at++] = *argument;
        if (at + 2 * slashes + 4 > COMMAND_ROOM)
            return FALSE;
    }
    for (size_t i = 0; i < slashes; i++)
        line[at++] = L'\\';
    line[at++] = L'"';
    line[at] = 0;
    *length = at;
    return TRUE;
}

static BOOL make_job(struct launcher *self, uint64_t max_memory)
{
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = {0};

    limits.BasicLimitInformation.LimitFlags =
        JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION;
    if (max_memory) {
        limits.BasicLimitInformation.LimitFlags |= JOB_OBJECT_LIMIT_PROCESS_MEMORY;
        limits.ProcessMemoryLimit = (SIZE_T)max_memory;
    }
    self->job = CreateJobObjectW(NULL, NULL);
    return self->job && SetInformationJobObject(self->job, JobObjectExtendedLimitInformation,
                                                &limits, sizeof limits);
}

/* Start the program in the job, before it has run a single instruction outside of it. */
static BOOL start(struct launcher *self, wchar_t *line, const wchar_t *folder)
{
    STARTUPINFOEXW info = {0};
    PROCESS_INFORMATION process;
    SIZE_T size = 0;
    BOOL made;

    info.StartupInfo.cb = sizeof info;
    info.StartupInfo.dwFlags = STARTF_USESTDHANDLES;
    info.StartupInfo.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    info.StartupInfo.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    info.StartupInfo.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    self->inherited[self->ninherited++] = info.StartupInfo.hStdInput;
    self->inherited[self->ninherited++] = info.StartupInfo.hStdOutput;
    self->inherited[self->ninherited++] = info.StartupInfo.hStdError;
    for (size_t i = 0; i < self->ninherited; i++)
        SetHandleInformation(self->inherited[i], HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT);
    InitializeProcThreadAttributeList(NULL, 1, 0, &size);
    info.lpAttributeList = malloc(size);
    if (!info.lpAttributeList ||
        !InitializeProcThreadAttributeList(info.lpAttributeList, 1, 0, &size) ||
        !UpdateProcThreadAttribute(info.lpAttributeList, 0, PROC_THREAD_ATTRIBUTE_HANDLE_LIST,
                                   self->inherited, self->ninherited * sizeof(HANDLE), NULL, NULL))
        return FALSE;
    made = CreateProcessW(NULL, line, NULL, NULL, TRUE,
                          CREATE_SUSPENDED | CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW |
                              EXTENDED_STARTUPINFO_PRESENT,
                          NULL, folder, &info.StartupInfo, &process);
    DeleteProcThreadAttributeList(info.lpAttributeList);
    free(info.lpAttributeList);
    if (!made)
        return FALSE;
    self->child = process.hProcess;
    self->pid = process.dwProcessId;
    if (!AssignProcessToJobObject(self->job, process.hProcess)) {
        const DWORD error = GetLastError();
        TerminateProcess(process.hProcess, 1);
        SetLastError(error);
        return FALSE;
    }
    ResumeThread(process.hThread);
    CloseHandle(process.hThread);
    /* The program's ends of the pipes are its own now: the host has to see them close. */
    for (size_t i = 0; i < self->ninherited; i++)
        CloseHandle(self->inherited[i]);
    return TRUE;
}

/* Read what the host asks for, until it is gone. */
static DWORD WINAPI listen(void *argument)
{
    struct launcher *self = argument;
    char command;
    DWORD count;

    while (ReadFile(self->read, &command, 1, &count, NULL) && count == 1) {
        InterlockedExchange(&self->command, command);
        SetEvent(self->asked);
    }
    InterlockedExchange(&self->command, 'Q');
    SetEvent(self->asked);
    return 0;
}

static void watch(struct launcher *self)
{
    const HANDLE handles[] = {self->child, self->host, self->asked};
    DWORD code = 1;
    BOOL over = FALSE;

    while (!over) {
        const DWORD which = WaitForMultipleObjects(3, handles, FALSE, INFINITE);
        const LONG command = which == WAIT_OBJECT_0 + 2 ? self->command : 0;

        if (command == 'T') {
            GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, self->pid);
            continue;
        }
        if (which == WAIT_OBJECT_0 + 1 || command == 'Q') {
            GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, self->pid);
            WaitForSingleObject(self->child, GRACE_MS);
        }
        over = TRUE;
    }
    if (WaitForSingleObject(self->child, 0) == WAIT_OBJECT_0 &&
        GetExitCodeProcess(self->child, &code))
        tell(self, 'X', code, 0);
    TerminateJobObject(self->job, 1);
    if (WaitForSingleObject(self->child, GRACE_MS) == WAIT_OBJECT_0 && code == 1)
        tell(self, 'X', code, 0);
}

int main(void)
{
    static wchar_t line[COMMAND_ROOM];
    struct launcher self = {0};
    size_t length = 0;
    int argc;
    wchar_t **argv = CommandLineToArgvW(GetCommandLineW(), &argc);

    if (!argv || argc < 9 || wcscmp(argv[7], L"--"))
        return 2;
    self.host = handle_of(argv[1]);
    self.read = handle_of(argv[2]);
    self.write = handle_of(argv[3]);
    for (wchar_t *text = argv[5]; *text && *text != L'-' && self.ninherited < MAX_HANDLES - 3;) {
        self.inherited[self.ninherited++] = handle_of(text);
        text += wcscspn(text, L",");
        text += *text == L',';
    }
    for (int i = 8; i < argc; i++)
        if (!append(line, &length, argv[i]))
            return 2;
    SetHandleInformation(self.host, HANDLE_FLAG_INHERIT, 0);
    SetHandleInformation(self.read, HANDLE_FLAG_INHERIT, 0);
    SetHandleInformation(self.write, HANDLE_FLAG_INHERIT, 0);
    self.asked = CreateEventW(NULL, FALSE, FALSE, NULL);
    if (!make_job(&self, _wcstoui64(argv[4], NULL, 10))) {
        tell(&self, 'E', GetLastError(), STEP_JOB);
        return 1;
    }
    if (!start(&self, line, argv[6])) {
        tell(&self, 'E', GetLastError(), STEP_EXEC);
        return 1;
    }
    tell(&self, 'S', self.pid, 0);
    if (!CreateThread(NULL, 0, listen, &self, 0, NULL))
        return 1; /* which closes the job */
    watch(&self);
    return 0;
}
