// Every form of operator new and delete; one case a run. The operators are called by name, so that the compiler
// may not leave a pair out.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <initializer_list>
#include <malloc.h>
#include <new>
#include <pthread.h>
#include <unistd.h>
#include <utility>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            dprintf(2, "line %d: %s\n", __LINE__, #condition);                                                         \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)
#define CASE(function) {#function, function}

static const std::size_t TOO_BIG = (static_cast<std::size_t>(1) << 62) + 5;
static volatile std::size_t zero = 0; // so that no compiler sees the argument
static int handled;
static void *volatile result; // of an allocation that must not come back

static const std::size_t SIZES[] = {0,     1,      8,      9,       24,     100,     1024,     1025,
                                    32768, 100000, 262144, 1048576, 3 << 20, 80 << 20};

static void use(void *p, std::size_t n, std::size_t align)
{
    CHECK(p);
    CHECK((reinterpret_cast<std::uintptr_t>(p) & (align - 1)) == 0);
    CHECK(malloc_usable_size(p) >= n);
    std::memset(p, 0x5a, n);
}

static void plain()
{
    for (std::size_t n : SIZES) {
        std::size_t align = n <= 8 ? 8 : 16;
        void *p = ::operator new(n), *q = ::operator new(n);
        CHECK(p != q);
        use(p, n, align);
        use(q, n, align);
        ::operator delete(p);
        ::operator delete(q, n);
        use(p = ::operator new[](n), n, align);
        ::operator delete[](p);
        use(p = ::operator new[](n), n, align);
        ::operator delete[](p, n);
    }
    ::operator delete(nullptr);
    ::operator delete[](nullptr);
    ::operator delete(nullptr, zero);
    ::operator delete[](nullptr, zero);
}

static void nothrow()
{
    for (std::size_t n : SIZES) {
        std::size_t align = n <= 8 ? 8 : 16;
        void *p;
        use(p = ::operator new(n, std::nothrow), n, align);
        ::operator delete(p, std::nothrow);
        use(p = ::operator new[](n, std::nothrow), n, align);
        ::operator delete[](p, std::nothrow);
    }
    CHECK(::operator new(TOO_BIG, std::nothrow) == nullptr);
    CHECK(::operator new[](TOO_BIG, std::nothrow) == nullptr);
    CHECK(::operator new(TOO_BIG, std::align_val_t(64), std::nothrow) == nullptr);
    CHECK(::operator new[](TOO_BIG, std::align_val_t(64), std::nothrow) == nullptr);
}

static void aligned()
{
    for (std::size_t align = 1; align <= (64u << 20); align *= 2) {
        for (std::size_t n : SIZES) {
            auto a = std::align_val_t(align);
            void *p;
            use(p = ::operator new(n, a), n > 4096 ? 4096 : n, align);
            ::operator delete(p, a);
            use(p = ::operator new(n, a), n > 4096 ? 4096 : n, align);
            ::operator delete(p, n, a);
            use(p = ::operator new[](n, a), n > 4096 ? 4096 : n, align);
            ::operator delete[](p, a);
            use(p = ::operator new[](n, a), n > 4096 ? 4096 : n, align);
            ::operator delete[](p, n, a);
            use(p = ::operator new(n, a, std::nothrow), n > 4096 ? 4096 : n, align);
            ::operator delete(p, a, std::nothrow);
            use(p = ::operator new[](n, a, std::nothrow), n > 4096 ? 4096 : n, align);
            ::operator delete[](p, a, std::nothrow);
        }
    }
}

template <typename F> static bool throws_bad_alloc(F allocate)
{
    try {
        allocate();
    } catch (const std::bad_alloc &) {
        return true;
    }
    return false;
}

static void bad_alloc()
{
    for (std::size_t n : {TOO_BIG, SIZE_MAX - zero, SIZE_MAX / 2 + 1}) {
        CHECK(throws_bad_alloc([n] { result = ::operator new(n); }));
        CHECK(throws_bad_alloc([n] { result = ::operator new[](n); }));
        CHECK(throws_bad_alloc([n] { result = ::operator new(n, std::align_val_t(64)); }));
        CHECK(throws_bad_alloc([n] { result = ::operator new[](n, std::align_val_t(64)); }));
    }
    CHECK(throws_bad_alloc([] { // an array whose length overflows
        std::size_t n = SIZE_MAX / 4 - zero;
        double *p = new double[n];
        std::printf("%p", static_cast<void *>(p));
    }));
}

struct from_handler {};

static void handler_throws()
{
    handled++;
    throw from_handler();
}

static void handler_gives_up()
{
    if (++handled == 3) std::set_new_handler(nullptr);
}

static void handler_called()
{
    std::set_new_handler(handler_throws);
    try {
        result = ::operator new(TOO_BIG);
        CHECK(!"threw");
    } catch (const from_handler &) {
    }
    try {
        result = ::operator new[](TOO_BIG, std::align_val_t(4096));
        CHECK(!"threw");
    } catch (const from_handler &) {
    }
    CHECK(handled == 2);
}

static void handler_called_until_none()
{
    std::set_new_handler(handler_gives_up);
    CHECK(throws_bad_alloc([] { result = ::operator new(TOO_BIG); }));
    CHECK(handled == 3);
    handled = 0;
    std::set_new_handler(handler_gives_up);
    CHECK(throws_bad_alloc([] { result = ::operator new(TOO_BIG, std::align_val_t(64)); }));
    CHECK(handled == 3);
}

static void handler_called_by_nothrow()
{
    void *(*forms[])() = {
        [] { return ::operator new(TOO_BIG, std::nothrow); },
        [] { return ::operator new[](TOO_BIG, std::nothrow); },
        [] { return ::operator new(TOO_BIG, std::align_val_t(64), std::nothrow); },
        [] { return ::operator new[](TOO_BIG, std::align_val_t(64), std::nothrow); },
    };
    for (auto form : forms) {
        handled = 0;
        std::set_new_handler(handler_gives_up);
        CHECK(form() == nullptr);
        CHECK(handled == 3);
    }
}

static void handler_not_called_by_malloc()
{
    std::set_new_handler(handler_throws);
    CHECK(std::malloc(TOO_BIG - zero) == nullptr);
    CHECK(handled == 0);
}

struct alignas(256) wide {
    char bytes[300];
    static int alive;
    wide() { alive++; }
    ~wide() { alive--; }
};
int wide::alive;

static void expressions()
{
    for (int i = 0; i < 1000; i++) {
        wide *one = new wide, *many = new wide[7];
        CHECK((reinterpret_cast<std::uintptr_t>(one) & 255) == 0 && (reinterpret_cast<std::uintptr_t>(many) & 255) == 0);
        CHECK(wide::alive == 8);
        delete[] many;
        delete one;
    }
    CHECK(wide::alive == 0);
    /* malloc and new are one pool, so that mixing them is at most bad style */
    for (std::size_t n : SIZES) {
        std::free(::operator new(n));
        ::operator delete(std::malloc(n));
    }
}

// Destructors of thread_local objects, which run as a thread ends.
struct at_thread_end {
    void *kept = nullptr;
    ~at_thread_end()
    {
        std::free(kept);
        for (std::size_t n = 1; n < 300000; n *= 3) ::operator delete(::operator new(n));
    }
};

static void *with_thread_local(void *)
{
    static thread_local at_thread_end object;
    object.kept = std::malloc(5000);
    return object.kept;
}

static void thread_local_destructors()
{
    for (int i = 0; i < 300; i++) {
        pthread_t thread[2];
        for (pthread_t &t : thread) CHECK(pthread_create(&t, nullptr, with_thread_local, nullptr) == 0);
        for (pthread_t t : thread) CHECK(pthread_join(t, nullptr) == 0);
    }
}

// Sizes that fit, and a system that gives no memory: under the debug variant, which can have it so.
static std::uint64_t (*fail)(std::uint32_t, std::uint64_t, std::uint64_t);

static void let_refuse()
{
    *reinterpret_cast<void **>(&fail) = dlsym(RTLD_DEFAULT, "hak_debug_fail");
    CHECK(fail);
    fail(31, 1, UINT64_MAX);
}

struct chain {
    chain *next;
    char rest[100000];
};

static void handler_lets_go()
{
    if (++handled == 3) fail(0, 0, 0);
}

static void refused_for_a_while()
{
    let_refuse();
    std::set_new_handler(handler_lets_go);
    chain *all = nullptr;
    while (handled < 3) all = new chain{all, {}};
    std::set_new_handler(nullptr);
    handled = 0;
    fail(31, 1, UINT64_MAX);
    std::set_new_handler(handler_lets_go);
    void *wide = ::operator new(3 << 20, std::align_val_t(32 << 20), std::nothrow);
    CHECK(wide && handled == 3);
    ::operator delete(wide, std::align_val_t(32 << 20));
    while (all) {
        chain *next = all->next;
        delete all;
        all = next;
    }
}

static void refused_for_good()
{
    let_refuse();
    chain *all = nullptr;
    bool thrown = false;
    while (!thrown) // the exception, too, needs memory
        thrown = throws_bad_alloc([&all] { all = new chain{all, {}}; });
    CHECK(new (std::nothrow) chain == nullptr);
    CHECK(throws_bad_alloc([] { result = ::operator new(80 << 20, std::align_val_t(4096)); }));
    delete std::exchange(all, all->next);
    all = new chain{all, {}}; // what was freed can be had
    fail(0, 0, 0);
    all = new chain{new chain{all, {}}, {}};
    while (all) delete std::exchange(all, all->next);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)();
    } cases[] = {
        CASE(plain),          CASE(nothrow),
        CASE(aligned),        CASE(bad_alloc),
        CASE(handler_called), CASE(handler_called_until_none),
        CASE(expressions),    CASE(handler_called_by_nothrow),
        CASE(handler_not_called_by_malloc), CASE(thread_local_destructors),
        {"refused_for_a_while", refused_for_a_while}, {"refused_for_good", refused_for_good},
    };
    for (const auto &c : cases) {
        if (argc > 1 && std::strcmp(argv[1], c.name) == 0) {
            c.run();
            return 0;
        }
    }
    dprintf(2, "no case of this name\n");
    return 1;
}
