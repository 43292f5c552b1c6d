/* A scripted engine that answers like vLLM's server, fast enough never to be what is measured.
 *
 *   engine --port 9000 [--service-us N] [--first-us N] [--gap-us N] [--idle-s N]
 *
 * A plain answer comes after --service-us; a stream's header at once, its first event after --first-us,
 * the others --gap-us apart, as many as the request's "max_tokens" says. Idle connections are closed
 * after --idle-s, as vLLM's server does. GET /stats counts what was asked and which streams were cut.
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

enum { MAX_FD = 16384, IN_BYTES = 1 << 17, DEFAULT_EVENTS = 16 };

typedef struct {
    char *in;            /* what has come of a request; IN_BYTES */
    size_t filled;
    int64_t due;         /* when to send next, ns; 0 where nothing is owed */
    int64_t last;        /* last use, ns */
    const char *pending; /* the rest of a write that did not fit */
    size_t pending_size;
    int events_left;     /* of a stream, without its end */
    int streaming;
    int open;
} Conn;

static Conn conns[MAX_FD];
static int epoll_fd, timer_fd, listen_fd, highest, owed;
static int64_t service_ns, first_ns, gap_ns, idle_ns = 5000000000LL, armed;
static long requests, streams, cut;

static const char MODEL[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1700000000,"
    "\"owned_by\":\"vllm\",\"root\":\"bench\",\"parent\":null,\"max_model_len\":4096}]}";
static const char INFO[] = "{\"model_path\":\"bench\",\"served_model_name\":\"bench\",\"is_generation\":true,\"version\":\"0\"}";
static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "transfer-encoding: chunked\r\n\r\n";
static char plain[2048], event[512], finish[1024];
static size_t plain_size, event_size, finish_size;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static size_t answer(char *to, size_t room, const char *body) {
    return (size_t)snprintf(to, room,
        "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: %zu\r\ncontent-type: application/json\r\n\r\n%s",
        strlen(body), body);
}

static void script(void) {
    char body[1024], json[512];
    const char *shape =
        "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,"
        "\"model\":\"bench\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\","
        "\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,\"tool_calls\":[]},"
        "\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":32,"
        "\"total_tokens\":48,\"completion_tokens\":16,\"prompt_tokens_details\":null}}";
    char text[256];
    size_t fixed = (size_t)snprintf(body, sizeof body, shape, "");
    size_t fill = 618 - fixed; /* the whole has 618 bytes */
    for (size_t i = 0; i < fill; i++) text[i] = i % 6 == 5 ? ' ' : 'a' + (char)(i % 23);
    text[fill] = 0;
    snprintf(body, sizeof body, shape, text);
    plain_size = answer(plain, sizeof plain, body);

    const char *delta =
        "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
        "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":%s},\"logprobs\":null,"
        "\"finish_reason\":%s}]}\n\n";
    int n = snprintf(json, sizeof json, delta, "\" token\"", "null");
    event_size = (size_t)snprintf(event, sizeof event, "%x\r\n%s\r\n", n, json);
    n = snprintf(json, sizeof json, delta, "\"\"", "\"stop\"");
    finish_size = (size_t)snprintf(finish, sizeof finish, "%x\r\n%s\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", n, json);
}

static void drop(int fd) {
    Conn *c = &conns[fd];
    if (c->streaming) cut++;
    if (c->due) owed--;
    free(c->in);
    memset(c, 0, sizeof *c);
    close(fd);
}

static int push(int fd, const char *data, size_t size) { /* 0 where the connection was lost */
    ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
        drop(fd);
        return 0;
    }
    if (n < 0) n = 0;
    conns[fd].pending = data + n;
    conns[fd].pending_size = size - (size_t)n;
    return 1;
}

static void owe(Conn *c, int64_t at) {
    if (!c->due) owed++;
    c->due = at;
}

static void settle(Conn *c) {
    if (c->due) owed--;
    c->due = 0;
}

static void respond(int fd, const char *head, const char *body, size_t body_size) {
    Conn *c = &conns[fd];
    static char text[2048];
    if (!strncmp(head, "POST /v1/", 9)) {
        requests++;
        if (memmem(body, body_size, "\"stream\":true", 13) || memmem(body, body_size, "\"stream\": true", 14)) {
            const char *max = memmem(body, body_size, "\"max_tokens\":", 13);
            c->events_left = max ? atoi(max + 13) : DEFAULT_EVENTS;
            c->streaming = 1;
            streams++;
            if (push(fd, STREAM_HEAD, sizeof STREAM_HEAD - 1)) owe(c, now_ns() + first_ns);
        } else if (service_ns) {
            owe(c, now_ns() + service_ns);
        } else {
            push(fd, plain, plain_size);
        }
        return;
    }
    if (!strncmp(head, "GET /v1/models", 14)) {
        push(fd, text, answer(text, sizeof text, MODEL));
    } else if (!strncmp(head, "GET /stats", 10)) {
        char json[256];
        int busy = 0;
        for (int i = 0; i <= highest; i++) busy += conns[i].open && conns[i].due;
        snprintf(json, sizeof json, "{\"requests\":%ld,\"streams\":%ld,\"cut\":%ld,\"busy\":%d}", requests, streams, cut, busy);
        push(fd, text, answer(text, sizeof text, json));
    } else if (!strncmp(head, "GET /health", 11)) {
        push(fd, text, answer(text, sizeof text, ""));
    } else {
        push(fd, text, answer(text, sizeof text, INFO));
    }
}

static size_t body_length(const char *head, const char *end) {
    for (const char *line = head; line && line < end; line = memchr(line, '\n', (size_t)(end - line)), line += !!line)
        if (!strncasecmp(line, "content-length:", 15)) return strtoul(line + 15, NULL, 10);
    return 0;
}

static void readable(int fd) {
    Conn *c = &conns[fd];
    ssize_t n = recv(fd, c->in + c->filled, IN_BYTES - 1 - c->filled, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 || c->filled + (size_t)n >= IN_BYTES - 1) {
        drop(fd);
        return;
    }
    c->filled += (size_t)n;
    c->in[c->filled] = 0;
    c->last = now_ns();
    while (c->open && !c->due && c->filled) { /* one answer at a time; what is pipelined waits */
        char *end = memmem(c->in, c->filled, "\r\n\r\n", 4);
        if (!end) return;
        size_t head_size = (size_t)(end + 4 - c->in), size = body_length(c->in, end);
        if (c->filled < head_size + size) return;
        respond(fd, c->in, c->in + head_size, size);
        if (!c->open) return;
        memmove(c->in, c->in + head_size + size, c->filled - head_size - size + 1);
        c->filled -= head_size + size;
    }
}

static void pay(int fd, int64_t now) { /* what is due on this connection */
    Conn *c = &conns[fd];
    c->last = now;
    if (c->pending_size) {
        if (push(fd, c->pending, c->pending_size) && c->pending_size) c->due = now + 1000000;
        if (!c->open || c->pending_size) return;
    }
    if (!c->streaming) {
        settle(c);
        push(fd, plain, plain_size);
    } else if (c->events_left > 1) {
        c->events_left--;
        c->due = now + gap_ns;
        push(fd, event, event_size);
    } else {
        settle(c);
        c->streaming = 0;
        push(fd, finish, finish_size);
    }
}

static void accept_all(void) {
    int fd, one = 1;
    while ((fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        conns[fd] = (Conn){.in = malloc(IN_BYTES), .open = 1, .last = now_ns()};
        if (fd > highest) highest = fd;
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static void arm(int64_t at) {
    if (at == armed) return;
    armed = at;
    struct itimerspec when = {.it_value = {at / 1000000000LL, at % 1000000000LL}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static long option(int argc, char **argv, const char *name, long otherwise) {
    for (int i = 1; i + 1 < argc; i++)
        if (!strcmp(argv[i], name)) return atol(argv[i + 1]);
    return otherwise;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    service_ns = option(argc, argv, "--service-us", 0) * 1000;
    first_ns = option(argc, argv, "--first-us", 5000) * 1000;
    gap_ns = option(argc, argv, "--gap-us", 2000) * 1000;
    idle_ns = option(argc, argv, "--idle-s", 5) * 1000000000LL;
    script();
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)option(argc, argv, "--port", 9000)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listen_fd, (struct sockaddr *)&address, sizeof address) || listen(listen_fd, 4096)) {
        perror("engine");
        return 1;
    }
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listen_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &e);
    e.data.fd = timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);

    int64_t swept = now_ns();
    struct epoll_event ready[256];
    for (;;) {
        int n = epoll_wait(epoll_fd, ready, 256, 1000);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listen_fd) {
                accept_all();
            } else if (fd == timer_fd) {
                uint64_t expired;
                if (read(timer_fd, &expired, sizeof expired) < 0) expired = 0;
                armed = 0;
            } else if (conns[fd].open) {
                if (ready[i].events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)) drop(fd);
                else readable(fd);
            }
        }
        if (owed) {
            int64_t now = now_ns(), next = INT64_MAX;
            for (int fd = 0; fd <= highest; fd++) {
                if (!conns[fd].open || !conns[fd].due) continue;
                if (conns[fd].due <= now) pay(fd, now);
                if (conns[fd].due && conns[fd].due < next) next = conns[fd].due;
            }
            if (owed) arm(next);
        }
        int64_t now = now_ns();
        if (now - swept > 1000000000LL) {
            swept = now;
            for (int fd = 0; fd <= highest; fd++)
                if (conns[fd].open && !conns[fd].due && now - conns[fd].last > idle_ns) drop(fd);
        }
    }
}
