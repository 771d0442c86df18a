/* A machine whose clock nobody has set: off as bench/faulty/clock.c has it, and the kernel says that it
   is not synchronised. */
#include "../../../bench/faulty/clock.c"
#include <sys/timex.h>

int adjtimex(struct timex *asked) {
    asked->status = STA_UNSYNC;
    return TIME_ERROR;
}
