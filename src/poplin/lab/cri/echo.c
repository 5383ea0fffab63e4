/*
 * The echo server as a static program, for images that hold nothing else: `echo PORT/PROTOCOL...`.
 *
 * It answers as lab/echo.py does: two lines, "pod: HOSTNAME" and "client: ADDRESS:PORT", then what was sent.
 * A TCP port speaks HTTP/1.1, gRPC's health check and plain TCP, told apart by the first bytes. Without a port
 * it only waits to be ended, which is all that a pod's sandbox needs of its first process.
 *
 * One process for each connection keeps every path straight: read, answer, exit. The kernel reaps them, and
 * whatever orphans process 1 of a PID namespace is given.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define PORTS_MAX 64
#define BACKLOG 1024
/* How long a client may take to say what it speaks before the server speaks first. */
#define SILENCE_MS 200
#define HEAD_MAX_BYTES (64 << 10)
#define BODY_MAX_BYTES (64 << 20)
#define FRAME_MAX_BYTES 16384
#define CALLS_MAX 64

static const char PREFACE[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
static const char *const methods[] = {"GET ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "PATCH "};
#define METHODS (sizeof methods / sizeof *methods)

static char hostname[256];

/* What has come of a connection and is not yet used: `size` bytes of `data`, which has room for `room`. */
struct buffer {
    char *data;
    size_t size, room;
};

static void end(int number)
{
    (void)number;
    _exit(0);
}

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, ": %s\n", strerror(errno));
    exit(1);
}

/* The two lines, in `text`; their length. */
static size_t describe(char *text, size_t room, const struct sockaddr_in6 *peer)
{
    char address[INET6_ADDRSTRLEN];
    int mapped = IN6_IS_ADDR_V4MAPPED(&peer->sin6_addr);
    inet_ntop(mapped ? AF_INET : AF_INET6, peer->sin6_addr.s6_addr + (mapped ? 12 : 0), address, sizeof address);
    int length = snprintf(text, room, "pod: %s\nclient: %s%s%s:%u\n", hostname, mapped ? "" : "[", address,
                          mapped ? "" : "]", ntohs(peer->sin6_port));
    return length < 0 ? 0 : (size_t)length;
}

/* ---- a connection, in a process of its own: whatever fails ends it ---- */

static void send_all(int fd, const void *data, size_t size)
{
    for (const char *next = data; size > 0;) {
        ssize_t sent = send(fd, next, size, MSG_NOSIGNAL);
        if (sent < 0)
            _exit(1);
        next += sent;
        size -= (size_t)sent;
    }
}

/* Read what there is; the number of bytes, 0 at the end. */
static size_t receive(int fd, struct buffer *buffer)
{
    if (buffer->size == buffer->room) {
        buffer->room = buffer->room ? buffer->room * 2 : FRAME_MAX_BYTES * 2;
        buffer->data = realloc(buffer->data, buffer->room);
        if (!buffer->data || buffer->room > BODY_MAX_BYTES * 2)
            _exit(1);
    }
    ssize_t got = recv(fd, buffer->data + buffer->size, buffer->room - buffer->size, 0);
    if (got < 0)
        _exit(1);
    buffer->size += (size_t)got;
    return (size_t)got;
}

static void consume(struct buffer *buffer, size_t size)
{
    buffer->size -= size;
    memmove(buffer->data, buffer->data + size, buffer->size);
}

static void speak_plain(int fd, struct buffer *buffer, const char *text, size_t length)
{
    send_all(fd, text, length);
    do {
        send_all(fd, buffer->data, buffer->size);
        buffer->size = 0;
    } while (receive(fd, buffer) > 0);
}

/* The value of a header field among the lines from `head` on, "" where there is none. */
static const char *find_field(const char *head, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        const char *value = line + 2 + length;
        if (strncasecmp(line + 2, name, length) == 0 && *value == ':')
            return value + 1 + strspn(value + 1, " \t");
    }
    return "";
}

static void speak_http(int fd, struct buffer *buffer, const char *text, size_t length)
{
    for (;;) {
        char *head_end;
        while (!(head_end = memmem(buffer->data, buffer->size, "\r\n\r\n", 4)))
            if (buffer->size > HEAD_MAX_BYTES || receive(fd, buffer) == 0)
                return;
        *head_end = 0;
        size_t head = (size_t)(head_end - buffer->data) + 4;
        size_t body = strtoul(find_field(buffer->data, "content-length"), NULL, 10);
        if (body > BODY_MAX_BYTES)
            return;
        while (buffer->size < head + body)
            if (receive(fd, buffer) == 0)
                return;
        const char *connection = find_field(buffer->data, "connection");
        size_t line = strcspn(buffer->data, "\r\n");
        int old = line >= 8 && memcmp(buffer->data + line - 8, "HTTP/1.0", 8) == 0;
        int keep = old ? strncasecmp(connection, "keep-alive", 10) == 0 : strncasecmp(connection, "close", 5) != 0;
        char answer[256];
        int size = snprintf(answer, sizeof answer,
                            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
                            "Content-Length: %zu\r\nConnection: %s\r\n\r\n",
                            length + line + 1 + body, keep ? "keep-alive" : "close");
        send_all(fd, answer, (size_t)size);
        if (strncmp(buffer->data, "HEAD ", 5) != 0) {
            send_all(fd, text, length);
            buffer->data[line] = '\n';
            send_all(fd, buffer->data, line + 1);
            send_all(fd, buffer->data + head, body);
        }
        if (!keep)
            return;
        consume(buffer, head + body);
    }
}

/* ---- HTTP/2 (RFC 9113), as much as a gRPC health check takes: see lab/http2.py ---- */

enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, CONTINUATION = 9 };
enum { ACK = 1, END_STREAM = 1, END_HEADERS = 4 };

static void send_frame(int fd, int kind, int flags, uint32_t stream, const void *payload, size_t size)
{
    uint8_t head[9] = {(uint8_t)(size >> 16), (uint8_t)(size >> 8), (uint8_t)size, (uint8_t)kind, (uint8_t)flags,
                       (uint8_t)(stream >> 24), (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
    send_all(fd, head, sizeof head);
    send_all(fd, payload, size);
}

/* The streams whose request has begun, and whether its path is the health check's. */
static struct call {
    uint32_t stream;
    int known;
} calls[CALLS_MAX];

static struct call *find_call(uint32_t stream)
{
    for (struct call *call = calls; call < calls + CALLS_MAX; call++)
        if (call->stream == stream)
            return call;
    return NULL;
}

static void answer_call(int fd, struct call *call)
{
    /* ":status: 200" of the static table; the rest literal, not indexed (RFC 7541, 6.2.2). */
    static const char first[] = "\x88\0\x0c" "content-type\x10" "application/grpc";
    static const char serving[] = "\0\0\0\0\2\x08\1", done[] = "\0\x0b" "grpc-status\1" "0";
    static const char unknown[] = "\x88\0\x0c" "content-type\x10" "application/grpc" "\0\x0b" "grpc-status\2" "12";
    if (call->known) {
        send_frame(fd, HEADERS, END_HEADERS, call->stream, first, sizeof first - 1);
        send_frame(fd, DATA, 0, call->stream, serving, sizeof serving - 1);
        send_frame(fd, HEADERS, END_HEADERS | END_STREAM, call->stream, done, sizeof done - 1);
    } else {
        send_frame(fd, HEADERS, END_HEADERS | END_STREAM, call->stream, unknown, sizeof unknown - 1);
    }
    *call = (struct call){0};
}

static int names_check(const uint8_t *headers, size_t size)
{
    static const char plain[] = "/grpc.health.v1.Health/Check";
    /* The same in the Huffman code of RFC 7541, appendix B. */
    static const uint8_t huffman[] = {0x62, 0x6b, 0x2b, 0x22, 0xf3, 0x94, 0x74, 0x26, 0x75, 0xfb, 0x85,
                                      0x7c, 0x65, 0x1d, 0x09, 0x9d, 0x8b, 0xd3, 0x94, 0x9d, 0x7f};
    return memmem(headers, size, plain, sizeof plain - 1) || memmem(headers, size, huffman, sizeof huffman);
}

static void answer_frame(int fd, int kind, int flags, uint32_t stream, const uint8_t *payload, size_t size)
{
    struct call *call = find_call(stream);
    if (kind == SETTINGS && !(flags & ACK))
        send_frame(fd, SETTINGS, ACK, 0, "", 0);
    if (kind == PING && !(flags & ACK))
        send_frame(fd, PING, ACK, 0, payload, size);
    if (stream == 0)
        return;
    if (kind == RST_STREAM && call)
        *call = (struct call){0};
    if (kind == HEADERS || kind == CONTINUATION) {
        if (!call && !(call = find_call(0)))
            _exit(1);
        call->stream = stream;
        call->known |= names_check(payload, size);
    }
    if ((kind == HEADERS || kind == DATA) && flags & END_STREAM && call)
        answer_call(fd, call);
}

static void speak_http2(int fd, struct buffer *buffer)
{
    consume(buffer, sizeof PREFACE - 1);
    send_frame(fd, SETTINGS, 0, 0, "", 0);
    do {
        while (buffer->size >= 9) {
            const uint8_t *head = (const uint8_t *)buffer->data;
            size_t size = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
            if (size > FRAME_MAX_BYTES)
                return;
            if (buffer->size < 9 + size)
                break;
            uint32_t stream = ((uint32_t)head[5] << 24 | (uint32_t)head[6] << 16 | head[7] << 8 | head[8]) & INT32_MAX;
            answer_frame(fd, head[3], head[4], stream, head + 9, size);
            consume(buffer, 9 + size);
        }
    } while (receive(fd, buffer) > 0);
}

static int begins(const struct buffer *buffer, const char *word)
{
    size_t length = strlen(word);
    return memcmp(buffer->data, word, buffer->size < length ? buffer->size : length) == 0;
}

/* Find out what the client speaks, and speak it until it goes. */
static void serve(int fd, const struct sockaddr_in6 *peer)
{
    static struct buffer buffer;
    char text[512];
    size_t length = describe(text, sizeof text, peer);
    for (;;) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, SILENCE_MS) <= 0 || receive(fd, &buffer) == 0)
            break;
        int undecided = 0;
        if (begins(&buffer, PREFACE)) {
            if (buffer.size >= sizeof PREFACE - 1) {
                speak_http2(fd, &buffer);
                return;
            }
            undecided = 1;
        }
        for (size_t i = 0; i < METHODS; i++) {
            if (!begins(&buffer, methods[i]))
                continue;
            if (buffer.size >= strlen(methods[i])) {
                speak_http(fd, &buffer, text, length);
                return;
            }
            undecided = 1;
        }
        if (!undecided)
            break;
    }
    speak_plain(fd, &buffer, text, length);
}

/* ---- the ports ---- */

static void accept_one(int listener, int count, const struct pollfd *all)
{
    struct sockaddr_in6 peer;
    socklen_t size = sizeof peer;
    int fd = accept(listener, (struct sockaddr *)&peer, &size);
    if (fd < 0)
        return;
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < count; i++)
            close(all[i].fd);
        serve(fd, &peer);
        _exit(0);
    }
    close(fd);
}

static void answer_datagram(int fd)
{
    static char datagram[1 << 16], answer[sizeof datagram + 512];
    struct sockaddr_in6 peer;
    socklen_t size = sizeof peer;
    ssize_t got = recvfrom(fd, datagram, sizeof datagram, 0, (struct sockaddr *)&peer, &size);
    if (got < 0)
        return;
    size_t length = describe(answer, sizeof answer, &peer);
    memcpy(answer + length, datagram, (size_t)got);
    sendto(fd, answer, length + (size_t)got, 0, (struct sockaddr *)&peer, size);
}

/* A socket for "PORT/TCP" or "PORT/UDP", of both families. */
static int open_port(const char *port, int *stream)
{
    const char *slash = strchr(port, '/');
    *stream = !slash || strcmp(slash, "/TCP") == 0;
    if (!*stream && strcmp(slash, "/UDP") != 0) {
        fprintf(stderr, "the echo server does not speak %s\n", port);
        exit(2);
    }
    struct sockaddr_in6 all = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(port))};
    int fd = socket(AF_INET6, *stream ? SOCK_STREAM : SOCK_DGRAM, 0), on = 1, off = 0;
    if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off) < 0 ||
        (*stream && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) ||
        bind(fd, (struct sockaddr *)&all, sizeof all) < 0 || (*stream && listen(fd, BACKLOG) < 0))
        fail("port %s", port);
    return fd;
}

int main(int count, char **arguments)
{
    static struct pollfd sockets[PORTS_MAX];
    static int streams[PORTS_MAX];
    /* Process 1 of a PID namespace has no default action for a signal. */
    signal(SIGTERM, end);
    signal(SIGINT, end);
    signal(SIGCHLD, SIG_IGN);
    gethostname(hostname, sizeof hostname - 1);
    int ports = count - 1;
    if (ports > PORTS_MAX) {
        fprintf(stderr, "%d ports, and %d are the most\n", ports, PORTS_MAX);
        return 2;
    }
    for (int i = 0; i < ports; i++)
        sockets[i] = (struct pollfd){.fd = open_port(arguments[i + 1], &streams[i]), .events = POLLIN};
    for (;;) {
        if (poll(sockets, (nfds_t)ports, -1) < 0 && errno != EINTR)
            fail("poll");
        for (int i = 0; i < ports; i++) {
            if (!(sockets[i].revents & POLLIN))
                continue;
            if (streams[i])
                accept_one(sockets[i].fd, ports, sockets);
            else
                answer_datagram(sockets[i].fd);
        }
    }
}
