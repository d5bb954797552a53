/* What a program sees of its terminal.
 *
 *   ptytest            says what it sees, four lines
 *   ptytest echo       asks for a name and answers; exits 1 at the end of input
 *   ptytest catch-int  says "ready", exits 42 when it is interrupted
 *   ptytest winch      says its size now and at each SIGWINCH, until it reads a line
 *   ptytest spew N     writes N bytes and exits at once: seven digits and a blank, counting blocks
 *                      of eight bytes, so that each piece tells where it belongs
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static volatile sig_atomic_t resized = 1;

static void on_interrupt(int signal)
{
    (void)signal;
    _exit(42);
}

static void on_resize(int signal)
{
    (void)signal;
    resized = 1;
}

static void say_size(void)
{
    struct winsize size;

    if (ioctl(0, TIOCGWINSZ, &size) == 0)
        printf("size %d %d\n", size.ws_row, size.ws_col);
    else
        printf("size none\n");
}

static int look(void)
{
    printf("isatty %d %d %d\n", isatty(0), isatty(1), isatty(2));
    printf("ttyname");
    for (int fd = 0; fd < 3; fd++) {
        const char *name = ttyname(fd);
        printf(" %s", name ? name : "none");
    }
    printf("\nforeground %s\n", tcgetpgrp(0) == getpgrp() ? "yes" : "no");
    say_size();
    return 0;
}

static int echo(void)
{
    char line[256];

    printf("name? ");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        return 1;
    line[strcspn(line, "\n")] = 0;
    printf("hello, %s\n", line);
    return 0;
}

static int catch_int(void)
{
    signal(SIGINT, on_interrupt);
    puts("ready");
    while (pause() < 0)
        continue;
    return 1;
}

/* SIGWINCH is open only while ppoll waits, so none is missed between a look and the wait. */
static int winch(void)
{
    struct sigaction act = {.sa_handler = on_resize};
    struct pollfd input = {.fd = 0, .events = POLLIN};
    sigset_t closed, open;

    sigemptyset(&open);
    sigemptyset(&closed);
    sigaddset(&closed, SIGWINCH);
    sigprocmask(SIG_BLOCK, &closed, NULL);
    sigaction(SIGWINCH, &act, NULL);
    do {
        if (resized)
            say_size();
        resized = 0;
    } while (ppoll(&input, 1, NULL, &open) < 0);
    return 0;
}

static int spew(long left)
{
    char buffer[8192];

    for (long block = 0; left > 0;) {
        long size = 0;
        while (size < (long)sizeof buffer - 8)
            size += snprintf(buffer + size, 9, "%07ld ", block++ % 10000000);
        if (size > left)
            size = left;
        left -= size;
        for (long done = 0; done < size;) {
            ssize_t more = write(1, buffer + done, size - done);
            if (more < 0)
                return 1;
            done += more;
        }
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "look";

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!strcmp(mode, "look"))
        return look();
    if (!strcmp(mode, "echo"))
        return echo();
    if (!strcmp(mode, "catch-int"))
        return catch_int();
    if (!strcmp(mode, "winch"))
        return winch();
    if (!strcmp(mode, "spew") && argc > 2)
        return spew(atol(argv[2]));
    fprintf(stderr, "ptytest: no mode %s\n", mode);
    return 2;
}
