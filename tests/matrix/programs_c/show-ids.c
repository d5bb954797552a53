/* Says who runs it: to be made setuid or setgid by a test. "secure" is what the kernel told the
 * loader about this start (AT_SECURE). */
#include <stdio.h>
#include <sys/auxv.h>
#include <unistd.h>

int main(void)
{
    printf("uid=%d euid=%d gid=%d egid=%d secure=%lu\n", (int)getuid(), (int)geteuid(),
           (int)getgid(), (int)getegid(), getauxval(AT_SECURE));
    return 0;
}
