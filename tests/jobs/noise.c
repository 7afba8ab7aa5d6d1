/* A thread that opens and closes files for ever, taking the C library's locks. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <time.h>

static long pause_nanoseconds;

static void *make_noise(void *unused) {
    (void)unused;
    for (;;) {
        FILE *file = fopen("/dev/null", "w");
        if (file) {
            fputs("noise", file);
            fclose(file);
        }
        if (pause_nanoseconds) {
            struct timespec pause = {0, pause_nanoseconds};
            nanosleep(&pause, NULL);
        }
    }
    return NULL;
}

int start_noise(long nanoseconds) {
    pthread_t thread;
    pause_nanoseconds = nanoseconds;
    int error = pthread_create(&thread, NULL, make_noise, NULL);
    if (!error) pthread_setname_np(thread, "file-noise");
    return error;
}
