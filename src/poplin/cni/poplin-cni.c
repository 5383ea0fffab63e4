/*
 * poplin-cni: what a container runtime executes for each pod (CNI specification 1.1.0).
 *
 * It checks its input as libcni's plugin skeleton does, opens the pod's network namespace and hands the
 * descriptor, the CNI_* environment and the configuration to the agent over a unix socket; then it prints
 * the agent's answer. Where no agent answers, it says so in CNI's own terms; a DEL then succeeds and
 * leaves a note for the agent's next start.
 *
 * Nothing is allocated: every buffer is static and bounded. One timer bounds the whole run.
 * The frames are described in frame.py, beside their Python encoder.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Below kubelet's two minutes for a sandbox, so that the reason reaches its log. */
#define DEADLINE_S 60
#define CONFIG_MAX_BYTES (1 << 20)
#define ENVIRONMENT_MAX_BYTES (256 << 10)
#define ANSWER_MAX_BYTES (1 << 20)
#define JSON_MAX_DEPTH 64
#define IFNAME_MAX_BYTES 15
/* linux/nsfs.h, which musl has not: what kind of namespace a descriptor is. */
#define NS_GET_NSTYPE _IO(0xb7, 0x3)
#define DEFAULT_SOCKET "/run/poplin/cni.sock"
#define DEFAULT_STATE_DIR "/var/lib/poplin"

/* Error codes of the specification, and 8 of libcni. */
enum {
    INCOMPATIBLE_VERSION = 1, BAD_ENVIRONMENT = 4, IO_FAILURE = 5, DECODING_FAILURE = 6, BAD_CONFIG = 7,
    BAD_NETNS = 8, TRY_AGAIN_LATER = 11, NOT_AVAILABLE = 50,
};

/* Commands as bits, in the order of `commands`. */
enum { ADD = 1, DEL = 2, CHECK = 4, GC = 8, STATUS = 16, VERSION = 32 };
static const char *const commands[] = {"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"};
static int command;

/* The environment: a variable that is not set is "", and `needed` has the commands that
 * require it (CNI_COMMAND itself always is). */
enum { COMMAND, CONTAINERID, NETNS, IFNAME, PATH, VARIABLES };
static struct {
    const char *name, *value;
    int needed;
} variables[VARIABLES] = {
    [COMMAND] = {"CNI_COMMAND", "", 0},
    [CONTAINERID] = {"CNI_CONTAINERID", "", ADD | DEL | CHECK},
    [NETNS] = {"CNI_NETNS", "", ADD | CHECK},
    [IFNAME] = {"CNI_IFNAME", "", ADD | DEL | CHECK},
    [PATH] = {"CNI_PATH", "", ADD | DEL | CHECK},
};

/* A bounded, NUL-terminated copy of a JSON string; `cut` where it did not fit or holds a NUL. */
struct text {
    char *bytes;
    size_t size, length;
    bool cut;
};

static const char *const versions[] = {"0.3.1", "0.4.0", "1.0.0", "1.1.0"};
enum { VERSIONS = sizeof versions / sizeof *versions, VERSION_0_4_0 = 1, VERSION_1_1_0 = 3 };

struct request_header {
    char magic[4];
    uint16_t frame_version, reserved;
    uint32_t environment_bytes, config_bytes;
};
struct answer_header {
    char magic[4];
    uint16_t frame_version, exit_code;
    uint32_t output_bytes;
};

/* The request as it is sent, its parts one behind another; `config` points into it. */
static struct {
    struct request_header header;
    char rest[ENVIRONMENT_MAX_BYTES + CONFIG_MAX_BYTES + 1];
} request;
static char *config, answer[ANSWER_MAX_BYTES];
static size_t environment_bytes, config_bytes;
static const char *waiting_for = "the network configuration on stdin";
#define TEXT(bytes_) {.bytes = (char[bytes_]){""}, .size = bytes_}
static struct text cni_version = TEXT(32), network = TEXT(256), state_dir = TEXT(1024);
static struct text socket_path = TEXT(sizeof((struct sockaddr_un *)0)->sun_path);

/* ---- answers ---- */

/* Index of the configuration's version in `versions`, or -1. */
static int version_index(void) {
    if (cni_version.cut) return -1;
    for (int i = 0; i < VERSIONS; i++)
        if (strcmp(cni_version.bytes, versions[i]) == 0) return i;
    return -1;
}

static void put_json_string(const char *s) {
    putchar('"');
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            printf("\\%c", c);
        else if (c < 0x20 || c >= 0x7f) /* whether it is UTF-8 is unknown here, and JSON must be */
            printf("\\u%04x", c < 0x80 ? c : 0xfffd);
        else
            putchar(c);
    }
    putchar('"');
}

/* Prints a CNI error and exits. `details` may be "". */
__attribute__((format(printf, 3, 4))) static _Noreturn void fail(int code, const char *details,
                                                                 const char *format, ...) {
    static char message[8192];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    alarm(0);
    int index = version_index() < 0 ? VERSIONS - 1 : version_index();
    printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":", versions[index], code);
    put_json_string(message);
    fputs(",\"details\":", stdout);
    put_json_string(details);
    fputs("}\n", stdout);
    exit(1);
}

/* VERSION: the specification asks for the input's own version back. */
static _Noreturn void print_versions(void) {
    alarm(0);
    fputs("{\"cniVersion\":", stdout);
    put_json_string(cni_version.length ? cni_version.bytes : versions[VERSIONS - 1]);
    fputs(",\"supportedVersions\":[", stdout);
    for (int i = 0; i < VERSIONS; i++) printf("%s\"%s\"", i ? "," : "", versions[i]);
    fputs("]}\n", stdout);
    exit(0);
}

/* ---- JSON (RFC 8259): checks the whole text, keeps four members of the outermost object ---- */

struct json {
    const char *at, *end;
    int depth;
};

static bool scan_value(struct json *j, struct text *kept);

static void set_text(struct text *t, const char *s) {
    t->length = strlen(strcpy(t->bytes, s));
    t->cut = false;
}

static void skip_space(struct json *j) {
    while (j->at < j->end && (*j->at == ' ' || *j->at == '\t' || *j->at == '\n' || *j->at == '\r')) j->at++;
}

static bool token(struct json *j, const char *expected) {
    size_t length = strlen(expected);
    if ((size_t)(j->end - j->at) < length || memcmp(j->at, expected, length) != 0) return false;
    j->at += length;
    return true;
}

static void keep(struct text *t, char c) {
    if (!t) return;
    /* A NUL would make the string end early for everyone who reads it as C's. */
    if (t->length + 1 >= t->size || c == '\0') {
        t->cut = true;
        return;
    }
    t->bytes[t->length++] = c;
    t->bytes[t->length] = '\0';
}

static void keep_code_point(struct text *t, uint32_t c) {
    static const unsigned char lead[] = {0, 0xC0, 0xE0, 0xF0};
    int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    keep(t, (char)(lead[more] | c >> 6 * more));
    while (more-- > 0) keep(t, (char)(0x80 | (c >> 6 * more & 0x3F)));
}

static bool scan_hex4(struct json *j, uint32_t *out) {
    if (j->end - j->at < 4) return false;
    *out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned char c = (unsigned char)*j->at++;
        if (!isxdigit(c)) return false;
        *out = *out << 4 | (uint32_t)(isdigit(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return true;
}

static bool scan_escape(struct json *j, struct text *kept) {
    static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (j->at == j->end) return false;
    char c = *j->at++;
    if (c == 'u') {
        uint32_t high, low;
        if (!scan_hex4(j, &high) || (high >= 0xDC00 && high <= 0xDFFF)) return false;
        if (high >= 0xD800 && high <= 0xDBFF) {
            if (!token(j, "\\u") || !scan_hex4(j, &low) || low < 0xDC00 || low > 0xDFFF) return false;
            high = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
        }
        keep_code_point(kept, high);
        return true;
    }
    const char *found = c ? strchr(escapes, c) : NULL;
    if (!found) return false;
    keep(kept, meanings[found - escapes]);
    return true;
}

static bool scan_string(struct json *j, struct text *kept) {
    if (!token(j, "\"")) return false;
    while (j->at < j->end) {
        unsigned char c = (unsigned char)*j->at++;
        if (c == '"') return true;
        if (c < 0x20) return false;
        if (c != '\\')
            keep(kept, (char)c);
        else if (!scan_escape(j, kept))
            return false;
    }
    return false;
}

static bool scan_digits(struct json *j) {
    const char *start = j->at;
    while (j->at < j->end && isdigit((unsigned char)*j->at)) j->at++;
    return j->at > start;
}

static bool scan_number(struct json *j) {
    token(j, "-");
    if (!token(j, "0") && !scan_digits(j)) return false;
    if (token(j, ".") && !scan_digits(j)) return false;
    if (token(j, "e") || token(j, "E")) {
        if (!token(j, "+")) token(j, "-");
        return scan_digits(j);
    }
    return true;
}

/* What keeps the member of this name of the outermost object, NULL where nothing does. */
static struct text *keeper(const char *key) {
    static const struct { const char *key; struct text *text; } kept[] = {
        {"cniVersion", &cni_version}, {"name", &network}, {"socket", &socket_path}, {"stateDir", &state_dir}};
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (strcmp(key, kept[i].key) == 0) return kept[i].text;
    return NULL;
}

static bool scan_member(struct json *j) {
    char key_bytes[16] = "";
    struct text key = {.bytes = key_bytes, .size = sizeof key_bytes};
    skip_space(j);
    if (!scan_string(j, &key)) return false;
    skip_space(j);
    if (!token(j, ":")) return false;
    skip_space(j);
    struct text *kept = j->depth == 1 && !key.cut ? keeper(key.bytes) : NULL;
    if (!kept) return scan_value(j, NULL);
    /* Of a member given twice the last counts, as in Go and in the agent. */
    set_text(kept, "");
    if (token(j, "null")) return true;
    return j->at < j->end && *j->at == '"' && scan_value(j, kept);
}

/* An object or array: `opening` was accepted. */
static bool scan_members(struct json *j, const char *closing, bool keyed) {
    if (++j->depth > JSON_MAX_DEPTH) return false;
    skip_space(j);
    if (!token(j, closing)) {
        do {
            if (!(keyed ? scan_member(j) : scan_value(j, NULL))) return false;
            skip_space(j);
        } while (token(j, ","));
        if (!token(j, closing)) return false;
    }
    j->depth--;
    return true;
}

static bool scan_value(struct json *j, struct text *kept) {
    skip_space(j);
    if (j->at == j->end) return false;
    switch (*j->at) {
    case '"': return scan_string(j, kept);
    case '{': return token(j, "{") && scan_members(j, "}", true);
    case '[': return token(j, "[") && scan_members(j, "]", false);
    case 't': return token(j, "true");
    case 'f': return token(j, "false");
    case 'n': return token(j, "null");
    default: return scan_number(j);
    }
}

static void scan_config(void) {
    struct json j = {.at = config, .end = config + config_bytes};
    skip_space(&j);
    bool whole = j.at < j.end && *j.at == '{' && scan_value(&j, NULL);
    if (whole) skip_space(&j);
    if (!whole || j.at != j.end)
        fail(DECODING_FAILURE, "", "the network configuration on stdin is no JSON object: wrong at byte %zd",
             j.at - config);
}

/* ---- input ---- */

static void read_environment(void) {
    char missing[128] = "";
    for (int i = 0; i < VARIABLES; i++) {
        const char *value = getenv(variables[i].name);
        variables[i].value = value ? value : "";
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(variables[COMMAND].value, commands[i]) == 0) command = 1 << i;
    for (int i = 0; i < VARIABLES; i++) {
        if (variables[i].value[0] || !(i == COMMAND || (variables[i].needed & command))) continue;
        if (missing[0]) strcat(missing, ",");
        strcat(missing, variables[i].name);
    }
    if (missing[0]) fail(BAD_ENVIRONMENT, "", "required env variables [%s] missing", missing);
    if (!command) fail(BAD_ENVIRONMENT, "", "unknown CNI_COMMAND: %s", variables[COMMAND].value);
}

/* Puts the CNI_* variables into the request. */
static void copy_environment(void) {
    extern char **environ;
    for (char **entry = environ; *entry; entry++) {
        if (strncmp(*entry, "CNI_", 4) != 0) continue;
        size_t length = strlen(*entry) + 1;
        if (length > ENVIRONMENT_MAX_BYTES - environment_bytes)
            fail(BAD_ENVIRONMENT, "", "the CNI_ variables exceed %d bytes together", ENVIRONMENT_MAX_BYTES);
        memcpy(request.rest + environment_bytes, *entry, length);
        environment_bytes += length;
    }
}

/* Puts stdin behind them. */
static void read_config(void) {
    config = request.rest + environment_bytes;
    while (config_bytes <= CONFIG_MAX_BYTES) {
        ssize_t got = read(STDIN_FILENO, config + config_bytes, CONFIG_MAX_BYTES + 1 - config_bytes);
        if (got < 0) fail(IO_FAILURE, "", "cannot read stdin: %s", strerror(errno));
        if (got == 0) return;
        config_bytes += (size_t)got;
    }
    fail(DECODING_FAILURE, "", "stdin holds more than %d bytes", CONFIG_MAX_BYTES);
}

/* Alphanumeric first, then also '_', '.' and '-': container ids and network names. */
static bool is_identifier(const char *s) {
    static const char alphanumeric[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    if (!*s || !strchr(alphanumeric, *s)) return false;
    while (*s && (strchr(alphanumeric, *s) || strchr("_.-", *s))) s++;
    return !*s;
}

static void check_names(void) {
    const char *container_id = variables[CONTAINERID].value, *ifname = variables[IFNAME].value;
    if (network.cut) fail(BAD_CONFIG, "", "network name is too long or holds a NUL");
    if (!network.length) fail(BAD_CONFIG, "", "missing network name");
    if (!is_identifier(network.bytes))
        fail(BAD_CONFIG, network.bytes, "invalid characters found in network name");
    if (socket_path.cut) fail(BAD_CONFIG, "", "`socket` is longer than a unix socket's path or holds a NUL");
    if (state_dir.cut) fail(BAD_CONFIG, "", "`stateDir` is too long or holds a NUL");
    if (command & (GC | STATUS)) return;
    if (!is_identifier(container_id))
        fail(BAD_ENVIRONMENT, container_id, "invalid characters in containerID");
    if (strlen(ifname) > IFNAME_MAX_BYTES)
        fail(BAD_ENVIRONMENT, "it should be less than 16 characters", "interface name is too long");
    if (strcmp(ifname, ".") == 0 || strcmp(ifname, "..") == 0)
        fail(BAD_ENVIRONMENT, "", "interface name is . or ..");
    for (const char *c = ifname; *c; c++)
        if (*c == '/' || *c == ':' || isspace((unsigned char)*c))
            fail(BAD_ENVIRONMENT, "", "interface name contains / or : or whitespace characters");
}

static void check_version(void) {
    int index = version_index();
    if (index < 0) {
        char details[160];
        snprintf(details, sizeof details,
                 "config is \"%s\", plugin supports [\"0.3.1\" \"0.4.0\" \"1.0.0\" \"1.1.0\"]",
                 cni_version.length ? cni_version.bytes : "0.1.0");
        fail(INCOMPATIBLE_VERSION, details, "incompatible CNI versions");
    }
    if ((command == CHECK && index < VERSION_0_4_0) || (command & (GC | STATUS) && index < VERSION_1_1_0))
        fail(INCOMPATIBLE_VERSION, "", "config version does not allow %s", variables[COMMAND].value);
}

/* The pod's namespace, or -1 where a DEL may do without. */
static int open_netns(void) {
    const char *path = variables[NETNS].value, *override = getenv("CNI_NETNS_OVERRIDE");
    bool needed = command & (ADD | CHECK);
    if (!*path || !(command & (ADD | CHECK | DEL))) return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        if (!needed) return -1;
        fail(BAD_NETNS, "", "cannot open the network namespace %s of CNI_NETNS: %s", path, strerror(errno));
    }
    if (ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET) {
        if (needed) fail(BAD_NETNS, "", "CNI_NETNS %s is not a network namespace", path);
        close(fd);
        return -1;
    }
    struct stat theirs, ours;
    bool allowed = override && (strcasecmp(override, "true") == 0 || strcmp(override, "1") == 0);
    if (allowed || fstat(fd, &theirs) < 0 || stat("/proc/self/ns/net", &ours) < 0) return fd;
    if (theirs.st_dev == ours.st_dev && theirs.st_ino == ours.st_ino)
        fail(BAD_NETNS, "", "plugin's netns and netns from CNI_NETNS should not be the same");
    return fd;
}

/* ---- without an agent ---- */

/* An empty file named CONTAINERID:IFNAME, for the agent's next start; ':' occurs in neither. */
static void leave_note(void) {
    char path[1024 + 300];
    const char *container_id = variables[CONTAINERID].value, *ifname = variables[IFNAME].value;
    if (strlen(container_id) + strlen(ifname) + 1 > 255)
        fail(BAD_ENVIRONMENT, container_id, "CNI_CONTAINERID is too long to be noted as deleted");
    mkdir(state_dir.bytes, 0700);
    snprintf(path, sizeof path, "%s/deleted", state_dir.bytes);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/deleted/%s:%s", state_dir.bytes, container_id, ifname);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        fail(IO_FAILURE, path, "no poplin agent answers on %s, and no note can be left for it: %s",
             socket_path.bytes, strerror(errno));
    close(fd);
}

static _Noreturn void answer_alone(const char *reason) {
    static char details[256];
    if (command == DEL) {
        leave_note();
        exit(0);
    }
    snprintf(details, sizeof details, "%s: %s", socket_path.bytes, reason);
    fail(command == STATUS ? NOT_AVAILABLE : TRY_AGAIN_LATER, details,
         "no poplin agent answers on %s; see that the poplin pod of this node is running, and read its log",
         socket_path.bytes);
}

/* ---- with the agent ---- */

static int connect_agent(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, socket_path.bytes, socket_path.length);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail(IO_FAILURE, "", "cannot make a unix socket: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) answer_alone(strerror(errno));
    return fd;
}

static void send_request(int fd, int netns_fd) {
    request.header = (struct request_header){
        .magic = "POPL",
        .frame_version = htons(1),
        .environment_bytes = htonl((uint32_t)environment_bytes),
        .config_bytes = htonl((uint32_t)config_bytes),
    };
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    control.header.cmsg_len = CMSG_LEN(sizeof netns_fd);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    memcpy(CMSG_DATA(&control.header), &netns_fd, sizeof netns_fd);
    struct iovec left = {&request, sizeof request.header + environment_bytes + config_bytes};
    struct msghdr message = {.msg_iov = &left, .msg_iovlen = 1};
    if (netns_fd >= 0) message.msg_control = &control, message.msg_controllen = sizeof control;
    while (left.iov_len) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        /* An agent that refuses without reading everything has said why before it closed. */
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) return;
        if (sent < 0) answer_alone(strerror(errno));
        message.msg_controllen = 0; /* the descriptor went with the first byte */
        left.iov_base = (char *)left.iov_base + sent;
        left.iov_len -= (size_t)sent;
    }
}

static void receive(int fd, void *into, size_t bytes) {
    for (size_t got = 0; got < bytes;) {
        ssize_t n = read(fd, (char *)into + got, bytes - got);
        if (n < 0) answer_alone(strerror(errno));
        if (n == 0) answer_alone("it closed the connection before it answered");
        got += (size_t)n;
    }
}

static int print_answer(int fd) {
    struct answer_header header;
    receive(fd, &header, sizeof header);
    uint32_t bytes = ntohl(header.output_bytes);
    if (memcmp(header.magic, "POPL", 4) != 0 || ntohs(header.frame_version) != 1 || bytes > sizeof answer)
        fail(IO_FAILURE, socket_path.bytes,
             "what answers is no poplin agent of this version; install the poplin-cni of the running agent");
    receive(fd, answer, bytes);
    alarm(0);
    if (fwrite(answer, 1, bytes, stdout) != bytes || fflush(stdout) != 0) return 1;
    return ntohs(header.exit_code);
}

/* Ends the program wherever it waits. The timer is stopped before anything is printed, so stdio is idle. */
static void on_deadline(int signal_number) {
    (void)signal_number;
    fail(TRY_AGAIN_LATER, socket_path.bytes, "gave up after %d s of waiting for %s", DEADLINE_S, waiting_for);
}

int main(void) {
    signal(SIGALRM, on_deadline);
    alarm(DEADLINE_S);
    read_environment();
    copy_environment();
    read_config();
    /* Old runtimes ask for VERSION with nothing on stdin. */
    if (config_bytes || command != VERSION) scan_config();
    if (command == VERSION) print_versions();
    check_names();
    check_version();
    if (!socket_path.length) set_text(&socket_path, DEFAULT_SOCKET);
    if (!state_dir.length) set_text(&state_dir, DEFAULT_STATE_DIR);
    waiting_for = "the answer of the poplin agent";
    int netns_fd = open_netns();
    int fd = connect_agent();
    send_request(fd, netns_fd);
    return print_answer(fd);
}
