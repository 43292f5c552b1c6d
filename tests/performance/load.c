/* A load generator: keep-alive HTTP/1.1 connections, one request at a time on each, one JSON line at the end.
 *
 *   load --port 8000 --connections 16 --seconds 3 --plain FILE [--stream FILE] [OPTION N]...
 *
 * The files hold whole requests, head and body. Closed loop by default: each connection asks again as soon as it
 * was answered. With --rate R it is an open one: R requests a second whatever the answers, latencies counted
 * from when a request was due, on at most --connections. --requests N ends after N. --stream-every K makes each
 * K-th request a stream (1: all), --hangup-every H hangs up on each H-th stream after --hangup-after events,
 * --quickack 1 acknowledges every packet at once. Answers that are not whole, and streams that do not end with
 * [DONE], count as broken.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 16384, MAX_SAMPLES = 20000000, TAIL = 16 };
enum { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, DONE };

typedef struct {
    int fd, state, busy, stream, hangup, events, status, size_digits, line_empty, close_after, retry_after;
    int64_t began, first;
    size_t head_size, left;
    char tail[TAIL + 1], previous, head[HEAD_BYTES];
} Conn;

typedef struct {
    uint32_t *at;
    size_t count, room;
} Samples;

typedef struct {
    char *data;
    size_t size;
} Request;

static Conn **conns;
static int epoll_fd, timer_fd, port, connections, quickack;
static long rate, limit, stream_every, hangup_every, hangup_after;
static Request plain, stream;
static Samples latency, first_token, refused;
static long started, answered, statuses[600], broken, unconnected, unanswered, hung_up, events, streams, retry_after, busy;
static int64_t begin, end_at, last_answer, answered_in_time;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void note(Samples *s, int64_t ns) {
    if (s->count == MAX_SAMPLES) return;
    if (s->count == s->room) s->at = realloc(s->at, (s->room = s->room ? s->room * 2 : 65536) * sizeof *s->at);
    int64_t tenths = ns / 100; /* tenths of a microsecond, up to seven minutes */
    s->at[s->count++] = tenths > UINT32_MAX ? UINT32_MAX : (uint32_t)tenths;
}

static void shut(Conn *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->busy) busy--;
    c->busy = 0;
}

static int dial(Conn *c, int slot) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) { /* loopback: at once or not at all */
        unconnected++;
        shut(c);
        return 0;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = (uint32_t)slot};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
    return 1;
}

static void ask(Conn *c, int slot, int64_t due) {
    started++;
    if (c->fd < 0 && !dial(c, slot)) return;
    c->stream = stream_every && started % stream_every == 0;
    if (c->stream) streams++;
    c->hangup = c->stream && hangup_every && streams % hangup_every == 0;
    c->state = HEAD;
    c->head_size = 0;
    c->events = c->close_after = c->retry_after = 0;
    c->first = 0;
    memset(c->tail, 0, sizeof c->tail);
    c->previous = 0;
    c->began = due;
    c->busy = 1;
    busy++;
    Request *r = c->stream ? &stream : &plain;
    if (send(c->fd, r->data, r->size, MSG_NOSIGNAL) != (ssize_t)r->size) {
        broken++;
        shut(c);
    }
}

static void content(Conn *c, const char *data, size_t size, int64_t now) {
    if (!size) return;
    if (!c->first) c->first = now;
    if (!c->stream) return;
    for (size_t i = 0; i < size; i++) {
        if (data[i] == '\n' && c->previous == '\n') c->events++;
        c->previous = data[i];
    }
    if (size >= TAIL) {
        memcpy(c->tail, data + size - TAIL, TAIL);
    } else {
        memmove(c->tail, c->tail + size, TAIL - size);
        memcpy(c->tail + TAIL - size, data, size);
    }
}

static int parse_head(Conn *c, size_t before) { /* 1 where it is whole; what follows it is still to be read */
    size_t from = before > 3 ? before - 3 : 0;
    char *found = memmem(c->head + from, c->head_size - from, "\r\n\r\n", 4);
    if (!found) return 0;
    *found = 0;
    c->status = c->head_size > 12 ? atoi(c->head + 9) : 0;
    c->state = DONE;
    c->left = 0;
    for (char *line = strstr(c->head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) {
            c->left = strtoul(line + 15, NULL, 10);
            c->state = c->left ? LENGTH : DONE;
        } else if (!strncasecmp(line, "transfer-encoding:", 18)) {
            c->state = CHUNK_SIZE;
            c->size_digits = 0;
        } else if (!strncasecmp(line, "connection: close", 17)) {
            c->close_after = 1;
        } else if (!strncasecmp(line, "retry-after:", 12)) {
            c->retry_after = 1;
        }
    }
    return (int)(found + 4 - c->head);
}

static void feed(Conn *c, const char *data, size_t size, int64_t now) {
    while (size && c->state != DONE) {
        size_t take = 1;
        char b = *data;
        if (c->state == LENGTH || c->state == CHUNK_DATA) {
            take = size < c->left ? size : c->left;
            content(c, data, take, now);
            c->left -= take;
            if (!c->left) c->state = c->state == LENGTH ? DONE : CHUNK_END;
        } else if (c->state == CHUNK_SIZE) {
            int digit = b >= '0' && b <= '9' ? b - '0' : (b | 32) >= 'a' && (b | 32) <= 'f' ? (b | 32) - 'a' + 10 : -1;
            if (digit >= 0 && c->size_digits >= 0) {
                c->left = c->left * 16 + (size_t)digit;
                c->size_digits++;
            } else if (b == '\n') {
                c->state = c->left ? CHUNK_DATA : TRAILER;
                c->line_empty = 1;
            } else {
                c->size_digits = -1; /* an extension, or the carriage return */
            }
        } else if (c->state == CHUNK_END) {
            if (b == '\n') {
                c->state = CHUNK_SIZE;
                c->left = 0;
                c->size_digits = 0;
            }
        } else if (b == '\n') { /* TRAILER: up to an empty line */
            if (c->line_empty) c->state = DONE;
            c->line_empty = 1;
        } else if (b != '\r') {
            c->line_empty = 0;
        }
        data += take;
        size -= take;
    }
}

static void finished(Conn *c, int64_t now) {
    events += c->events;
    if (c->status > 0 && c->status < 600) statuses[c->status]++;
    if (c->status != 200) {
        note(&refused, now - c->began);
        retry_after += c->retry_after && (c->status == 429 || c->status == 503);
    } else if (!c->first || (c->stream && !memmem(c->tail, TAIL, "[DONE]", 6))) {
        broken++;
    } else {
        answered++;
        if (now <= end_at) answered_in_time++;
        last_answer = now;
        note(&latency, now - c->began);
        if (c->stream) note(&first_token, c->first - c->began);
    }
    if (c->close_after) shut(c);
    if (c->busy) busy--;
    c->busy = 0;
}

static void readable(Conn *c) {
    static char buffer[1 << 16];
    int one = 1;
    if (quickack) setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (quickack) setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &one, sizeof one);
    if (n <= 0 || !c->busy) { /* closed, or bytes that nobody asked for */
        if (c->busy) broken++;
        shut(c);
        return;
    }
    int64_t now = now_ns();
    const char *data = buffer;
    size_t size = (size_t)n;
    while (c->state == HEAD) {
        size_t before = c->head_size, room = HEAD_BYTES - 1 - before, take = size < room ? size : room;
        memcpy(c->head + before, data, take);
        c->head_size += take;
        c->head[c->head_size] = 0;
        int head = parse_head(c, before);
        if (!head) {
            if (take < size || !room) {
                broken++;
                shut(c);
            }
            return;
        }
        data += (size_t)head - before;
        size -= (size_t)head - before;
    }
    feed(c, data, size, now);
    if (c->state == DONE) {
        finished(c, now);
    } else if (c->hangup && c->events >= hangup_after) {
        hung_up++;
        events += c->events;
        shut(c);
    }
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void tell(const char *name, Samples *s) {
    qsort(s->at, s->count, sizeof *s->at, by_size);
    double sum = 0;
    for (size_t i = 0; i < s->count; i++) sum += s->at[i];
    printf(",\"%s\":{\"count\":%zu", name, s->count);
    const double points[] = {0.5, 0.9, 0.99, 1.0};
    const char *names[] = {"p50", "p90", "p99", "max"};
    for (int i = 0; i < 4 && s->count; i++) {
        size_t rank = (size_t)(points[i] * (double)s->count + 0.999999); /* nearest rank */
        printf(",\"%s\":%.1f", names[i], s->at[rank ? rank - 1 : 0] / 10.0);
    }
    if (s->count) printf(",\"mean\":%.1f", sum / (double)s->count / 10.0);
    printf("}");
}

static void load_file(Request *r, const char *name) {
    FILE *f = name ? fopen(name, "rb") : NULL;
    if (!f) return;
    r->data = malloc(1 << 20);
    r->size = fread(r->data, 1, 1 << 20, f);
    fclose(f);
}

static const char *text(int argc, char **argv, const char *name, const char *otherwise) {
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], name)) return argv[i + 1];
    return otherwise;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    port = atoi(text(argc, argv, "--port", "8000"));
    connections = atoi(text(argc, argv, "--connections", "1"));
    quickack = atoi(text(argc, argv, "--quickack", "0"));
    rate = atol(text(argc, argv, "--rate", "0"));
    limit = atol(text(argc, argv, "--requests", "0"));
    stream_every = atol(text(argc, argv, "--stream-every", "0"));
    hangup_every = atol(text(argc, argv, "--hangup-every", "0"));
    hangup_after = atol(text(argc, argv, "--hangup-after", "3"));
    double seconds = atof(text(argc, argv, "--seconds", "1")), grace = atof(text(argc, argv, "--grace", "10"));
    load_file(&plain, text(argc, argv, "--plain", NULL));
    load_file(&stream, text(argc, argv, "--stream", NULL));
    if (connections < 1 || (!plain.size && stream_every != 1) || (stream_every && !stream.size)) {
        fprintf(stderr, "load: needs --connections and the files of its requests\n");
        return 2;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = UINT32_MAX}, ready[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
    conns = calloc((size_t)connections, sizeof *conns);
    for (int i = 0; i < connections; i++) {
        conns[i] = calloc(1, sizeof **conns);
        conns[i]->fd = -1;
    }
    begin = now_ns();
    end_at = begin + (int64_t)(seconds * 1e9);
    int64_t give_up = end_at + (int64_t)(grace * 1e9);
    long scheduled = 0;
    int next_slot = 0;
    for (int i = 0; !rate && i < connections && (!limit || started < limit); i++) ask(conns[i], i, now_ns());
    for (;;) {
        int64_t now = now_ns();
        int open = now < end_at && (!limit || started < limit);
        if (open && rate) { /* what is due by now, where a connection is free */
            while (begin + scheduled * 1000000000LL / rate <= now && busy < connections) {
                while (conns[next_slot]->busy) next_slot = (next_slot + 1) % connections;
                ask(conns[next_slot], next_slot, begin + scheduled++ * 1000000000LL / rate);
                next_slot = (next_slot + 1) % connections;
            }
        }
        if ((!open && !busy) || now >= give_up) break;
        if (rate && open) {
            int64_t at = begin + scheduled * 1000000000LL / rate;
            struct itimerspec when = {.it_value = {at / 1000000000LL, at % 1000000000LL}};
            timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
        }
        int n = epoll_wait(epoll_fd, ready, 256, 20);
        for (int i = 0; i < n; i++) {
            uint64_t expired;
            if (ready[i].data.u32 == UINT32_MAX) {
                if (read(timer_fd, &expired, sizeof expired) < 0) continue;
            } else if (conns[ready[i].data.u32]->fd >= 0) {
                Conn *c = conns[ready[i].data.u32];
                readable(c);
                if (!rate && !c->busy && (!limit || started < limit) && (now = now_ns()) < end_at)
                    ask(c, (int)ready[i].data.u32, now);
            }
        }
        for (int i = 0; !rate && n == 0 && i < connections; i++) /* those that could not connect try again */
            if (!conns[i]->busy && (!limit || started < limit) && (now = now_ns()) < end_at) ask(conns[i], i, now);
    }
    unanswered = busy;
    double took = (double)(now_ns() - begin) / 1e9;
    double window = limit || end_at > now_ns() ? (double)(last_answer - begin) / 1e9 : seconds;
    long in_window = limit ? answered : answered_in_time;
    printf("{\"took_s\":%.4f,\"started\":%ld,\"answered\":%ld,\"requests_per_s\":%.1f,\"broken\":%ld,\"unconnected\":%ld,"
           "\"unanswered\":%ld,\"hung_up\":%ld,\"streams\":%ld,\"events\":%ld,\"retry_after\":%ld,\"statuses\":{",
           took, started, answered, window > 0 ? (double)in_window / window : 0.0, broken, unconnected, unanswered, hung_up,
           streams, events, retry_after);
    for (int i = 0, first = 1; i < 600; i++)
        if (statuses[i]) first = !printf("%s\"%d\":%ld", first ? "" : ",", i, statuses[i]);
    printf("}");
    tell("latency_us", &latency);
    tell("first_token_us", &first_token);
    tell("refused_us", &refused);
    printf("}\n");
    return 0;
}
