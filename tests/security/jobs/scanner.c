/* Counts a needle in memory and files without ever holding it: the key is the needle with
   each byte xor 0x55, and every byte is compared as it lies there. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MASK 0x55

static unsigned char window[1 << 20];

static long count(const unsigned char *bytes, long length, const unsigned char *key, long size) {
    long found = 0;
    const unsigned char *at = bytes, *end = bytes + length;
    while (end - at >= size && (at = memchr(at, key[0] ^ MASK, end - at - size + 1))) {
        long i = 1;
        while (i < size && (at[i] ^ MASK) == key[i])
            i++;
        found += i == size;
        at++;
    }
    return found;
}

/* Bytes of fd from start to end; windows overlap, so that no needle lies across two. Pages
   that cannot be read are passed over. */
static long count_range(int fd, uint64_t start, uint64_t end, const unsigned char *key, long size) {
    long found = 0;
    while (start < end) {
        uint64_t wanted = end - start < sizeof window ? end - start : sizeof window;
        ssize_t got = pread(fd, window, wanted, start);
        if (got <= 0) {
            start = (start | 4095) + 1;
            continue;
        }
        found += count(window, got, key, size);
        start += got;
        if (start < end && got >= size)
            start -= size - 1;
    }
    return found;
}

/* All mappings, those without read permission too: /proc/self/mem does not ask. */
long count_in_memory(const unsigned char *key, long size) {
    int fd = open("/proc/self/mem", O_RDONLY);
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4096];
    long found = 0;
    uintptr_t own = (uintptr_t)window, own_end = own + sizeof window;
    if (fd < 0 || !maps)
        return -1;
    while (fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx", &start, &end) != 2 || strstr(line, "[v"))
            continue;
        /* The scanner's window holds copies of what was just looked at. */
        if (start < own_end && own < end) {
            if (start < own)
                found += count_range(fd, start, own, key, size);
            if (own_end < end)
                found += count_range(fd, own_end, end, key, size);
        } else
            found += count_range(fd, start, end, key, size);
    }
    memset(window, 0, sizeof window);
    fclose(maps);
    close(fd);
    return found;
}

/* The first mebibyte; what a file holds of a job's data is not further down. */
long count_in_file(const char *path, const unsigned char *key, long size) {
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    long length = 0, found;
    ssize_t got;
    if (fd < 0)
        return -1;
    while (length < (long)sizeof window && (got = read(fd, window + length, sizeof window - length)) > 0)
        length += got;
    found = count(window, length, key, size);
    memset(window, 0, sizeof window);
    close(fd);
    return found;
}
