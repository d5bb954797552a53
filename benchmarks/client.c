/* One kind of call, timed in batches: client OPERATION DIRECTORY COUNT BATCHES SIZE
 *
 * Prints the nanoseconds of each batch of COUNT calls, one a line. What a batch needs or leaves is
 * made and removed outside of the time. DIRECTORY holds what `benchmarks.trees.micro` puts there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { BIG = 16 << 20, PAGE = 4096, LENGTH = 64, DEPTH = 100 };

static int count, batch;
static size_t size;
static int data = -1;
static char *buffer, *mapped;
static volatile char seen;

static void fail(const char *what) { err(1, "%s", what); }

/* A name of its own for each call of each batch. */
static const char *own(const char *kind, int i)
{
	static char names[2][LENGTH];
	static int turn;
	char *name = names[turn ^= 1];
	snprintf(name, LENGTH, "%s-%d-%d-%d", kind, getpid(), batch, i);
	return name;
}

static const char *known(int i)
{
	static char name[LENGTH];
	snprintf(name, LENGTH, "many/f%06d", batch * count + i);
	return name;
}

/* Blocks in an order that read-ahead does not guess; each once while COUNT * SIZE <= BIG. */
static off_t scattered(int i)
{
	int blocks = BIG / (int)size;
	return (off_t)(((long)i * 7919 + batch) % blocks) * (off_t)size;
}

static void opened(const char *name, int flags)
{
	int fd = open(name, flags | O_CLOEXEC, 0644);
	if (fd < 0)
		fail(name);
	if (size && pread(fd, buffer, size, 0) < 0)
		fail(name);
	close(fd);
}

static void no(const char *name)
{
	struct stat found;
	if (lstat(name, &found) == 0 || errno != ENOENT)
		errx(1, "%s is there", name);
}

static void there(const char *name)
{
	struct stat found;
	if (lstat(name, &found))
		fail(name);
}

static void stat_(int i) { (void)i; there("file"); }
static void stat_new(int i) { there(known(i)); }
static void missing(int i) { no(own("no", i)); }
static void missing_again(int i) { (void)i; no("none"); }
static void open_(int i) { (void)i; opened("file", O_RDONLY); }
static void create(int i) { opened(own("c", i), O_RDWR | O_CREAT | O_EXCL); }
static void unlink_(int i) { if (unlink(own("c", i))) fail("unlink"); }
static void unlink_renamed(int i) { if (unlink(own("d", i))) fail("unlink"); }
static void rename_(int i) { if (rename(own("c", i), own("d", i))) fail("rename"); }
static void mkdir_(int i) { if (mkdir(own("c", i), 0755)) fail("mkdir"); }
static void rmdir_(int i) { if (rmdir(own("c", i))) fail("rmdir"); }
static void deep(int i)
{
	static char path[2 * DEPTH + sizeof "file"];
	(void)i;
	for (int level = 0; !path[2 * DEPTH] && level < DEPTH; level++)
		memcpy(path + 2 * level, "d/", 2);
	memcpy(path + 2 * DEPTH, "file", sizeof "file");
	there(path);
}
static void chmod_(int i) { if (chmod("file", i & 1 ? 0644 : 0600)) fail("chmod"); }
static void readlink_(int i) { (void)i; if (readlink("link", buffer, PAGE) < 0) fail("readlink"); }
static void getxattr_(int i)
{
	(void)i;
	if (getxattr("file", "user.bench", buffer, PAGE) < 0)
		fail("getxattr");
}

static void readdir_(int i)
{
	(void)i;
	DIR *listing = opendir(".");
	if (!listing)
		fail("opendir");
	errno = 0;
	while (readdir(listing))
		continue;
	if (errno)
		fail("readdir");
	closedir(listing);
}

static void open_data(const char *name, int flags)
{
	if (data < 0)
		data = open(name, flags | O_CLOEXEC, 0644);
	if (data < 0)
		fail(name);
}

/* Nothing of it in the cache, and nothing read ahead. */
static void uncached(void)
{
	open_data("big", O_RDONLY);
	posix_fadvise(data, 0, 0, POSIX_FADV_DONTNEED);
	posix_fadvise(data, 0, 0, POSIX_FADV_RANDOM);
}
static void map(void)
{
	uncached();
	mapped = mmap(NULL, BIG, PROT_READ, MAP_SHARED, data, 0);
	if (mapped == MAP_FAILED)
		fail("mmap");
}
static void unmap(void) { munmap(mapped, BIG); }
static void touch(int i) { seen = mapped[scattered(i)]; }
static void cached(void) { open_data("big", O_RDONLY); }
static void scratch(void) { open_data("scratch", O_RDWR | O_CREAT); }
static void read_(int i)
{
	if (pread(data, buffer, size, scattered(i)) != (ssize_t)size)
		fail("pread");
}
static void write_(int i)
{
	if (pwrite(data, buffer, size, (off_t)i % (BIG / (off_t)size) * (off_t)size) != (ssize_t)size)
		fail("pwrite");
}

static void each(void (*call)(int))
{
	for (int i = 0; i < count; i++)
		call(i);
}
static void make_files(void) { size_t kept = size; size = 0; each(create); size = kept; }
static void make_directories(void) { each(mkdir_); }
static void remove_files(void) { each(unlink_); }
static void remove_renamed(void) { each(unlink_renamed); }
static void remove_directories(void) { each(rmdir_); }

static const struct operation {
	const char *name;
	void (*before)(void), (*call)(int), (*after)(void);
} operations[] = {
	{"stat", NULL, stat_, NULL},
	{"stat-new", NULL, stat_new, NULL},
	{"missing", NULL, missing, NULL},
	{"missing-again", NULL, missing_again, NULL},
	{"open", NULL, open_, NULL},
	{"readdir", NULL, readdir_, NULL},
	{"create", NULL, create, remove_files},
	{"unlink", make_files, unlink_, NULL},
	{"rename", make_files, rename_, remove_renamed},
	{"mkdir", NULL, mkdir_, remove_directories},
	{"rmdir", make_directories, rmdir_, NULL},
	{"deep", NULL, deep, NULL},
	{"chmod", NULL, chmod_, NULL},
	{"readlink", NULL, readlink_, NULL},
	{"getxattr", NULL, getxattr_, NULL},
	{"read", uncached, read_, NULL},
	{"read-again", cached, read_, NULL},
	{"write", scratch, write_, NULL},
	{"mmap", map, touch, unmap},
};

static const struct operation *find(const char *name)
{
	for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
		if (!strcmp(operations[i].name, name))
			return &operations[i];
	errx(2, "no operation %s", name);
}

int main(int argc, char **argv)
{
	if (argc != 6)
		errx(2, "client OPERATION DIRECTORY COUNT BATCHES SIZE");
	const struct operation *operation = find(argv[1]);
	if (chdir(argv[2]))
		fail(argv[2]);
	count = atoi(argv[3]);
	int batches = atoi(argv[4]);
	size = strtoul(argv[5], NULL, 10);
	buffer = calloc(1, size > PAGE ? size : PAGE);
	if (!buffer)
		fail("calloc");
	for (batch = 0; batch < batches; batch++) {
		struct timespec began, ended;
		if (operation->before)
			operation->before();
		clock_gettime(CLOCK_MONOTONIC, &began);
		each(operation->call);
		clock_gettime(CLOCK_MONOTONIC, &ended);
		if (operation->after)
			operation->after();
		printf("%ld\n", (ended.tv_sec - began.tv_sec) * 1000000000L + ended.tv_nsec - began.tv_nsec);
	}
	return 0;
}
