/* threads DIRECTORY: eight threads that ask sysconf and fcntl, write files and count together.
 *
 * Each writes a file of its own and adds to one number in the file "count", under a lock of that
 * file: 1600 at the end, or a count was lost. Says so and exits 0; 1 at the first thing that fails.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { THREADS = 8, ROUNDS = 200 };

#define MUST(what) ((what) ? (void)0 : (perror(#what), exit(1)))

static void add_one(void)
{
    /* A lock of the open file: one of the process would not keep its threads apart. */
    struct flock lock = {.l_type = F_WRLCK};
    int number = 0;
    int fd = open("count", O_RDWR | O_CREAT, 0644);

    MUST(fd >= 0);
    MUST(fcntl(fd, F_OFD_SETLKW, &lock) == 0);
    MUST(pread(fd, &number, sizeof number, 0) >= 0);
    number++;
    MUST(pwrite(fd, &number, sizeof number, 0) == sizeof number);
    MUST(close(fd) == 0);
}

static void *work(void *argument)
{
    int self = *(int *)argument;
    char name[32];
    int fd;

    snprintf(name, sizeof name, "thread-%d", self);
    fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    MUST(fd >= 0);
    for (int round = 0; round < ROUNDS; round++) {
        int written = self * ROUNDS + round, read = -1;

        MUST(sysconf(_SC_NPROCESSORS_ONLN) > 0 && sysconf(_SC_OPEN_MAX) > 0);
        MUST(fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
        MUST(write(fd, &written, sizeof written) == sizeof written);
        MUST(pread(fd, &read, sizeof read, round * (off_t)sizeof read) == sizeof read);
        MUST(read == written);
        add_one();
    }
    MUST(close(fd) == 0);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    int selves[THREADS], count = 0, fd;

    MUST(argc == 2 && chdir(argv[1]) == 0);
    for (int i = 0; i < THREADS; i++) {
        selves[i] = i;
        MUST(pthread_create(&threads[i], NULL, work, &selves[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        MUST(pthread_join(threads[i], NULL) == 0);
    fd = open("count", O_RDONLY);
    MUST(fd >= 0 && read(fd, &count, sizeof count) == sizeof count);
    printf("%d threads counted to %d\n", THREADS, count);
    return count != THREADS * ROUNDS;
}
