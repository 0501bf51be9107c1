/* Executes cpuid for each ud2 that without_vnni.py put in its place, and hides AVX-512, VNNI and AMX. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))

static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);
static volatile int emulated_count;

int emulated(void) { return emulated_count; }

static void on_illegal(int number, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)regs[REG_RIP];
    if (at[0] != 0x0F || at[1] != 0x0B) {
        struct sigaction plain = {.sa_handler = SIG_DFL};
        real_sigaction(number, &plain, 0);
        return;
    }
    unsigned leaf = (unsigned)regs[REG_RAX], sub = (unsigned)regs[REG_RCX], a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(sub));
    if (leaf == 7 && sub == 0) {
        b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* AVX512 F DQ IFMA PF ER CD BW VL */
        c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)); /* AVX512 VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
        d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* 4VNNIW 4FMAPS VP2INTERSECT AMX-BF16 FP16 TILE INT8 */
    } else if (leaf == 7 && sub == 1) {
        a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX-VNNI AVX512-BF16 AMX-FP16 AVX-IFMA */
        d &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19)); /* VNNI-INT8 NE-CONVERT AMX-COMPLEX VNNI-INT16 AVX10 */
    }
    regs[REG_RAX] = a, regs[REG_RBX] = b, regs[REG_RCX] = c, regs[REG_RDX] = d;
    regs[REG_RIP] += 2;
    emulated_count++;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    real_sigaction = (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(RTLD_NEXT, "sigaction");
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    real_sigaction(SIGILL, &action, 0);
}

/* the handler stays, whatever installs another one later */
int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
    return real_sigaction(number, number == SIGILL ? 0 : action, old);
}
