/* Lets zfs-fuse serve one request at a time.
 *
 * zfs-fuse 0.7 frees an inode's znode while another thread is in a request for the same inode, and
 * dies of it: SIGSEGV in zfs_inactive under GETATTR, or SIGABRT in its own assertions. Two seconds
 * of several clients that create and remove the same names are enough. Requests that take turns
 * cannot meet; what the daemon does by itself (transaction groups, I/O to the image) goes on beside
 * them and takes no request.
 *
 * Preloaded into the daemon; stands before libfuse 2's function of the same name.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>

typedef void process_fn(void *session, const char *request, size_t length, void *channel);

static process_fn *served_by;
static pthread_once_t found = PTHREAD_ONCE_INIT;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void find(void)
{
    served_by = (process_fn *)dlsym(RTLD_NEXT, "fuse_session_process");
    if (!served_by)
        abort();
}

void fuse_session_process(void *session, const char *request, size_t length, void *channel)
{
    pthread_once(&found, find);
    pthread_mutex_lock(&turn);
    served_by(session, request, length, channel);
    pthread_mutex_unlock(&turn);
}
