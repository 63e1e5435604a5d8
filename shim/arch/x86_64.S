/* SPDX-License-Identifier: Apache-2.0
 *
 * dlsym for x86-64: looks only at names cu[A-Z]*, and only when the caller does not ask for RTLD_NEXT; everything else goes to the
 * real one by a tail-jump, so that glibc sees the caller's own return address (RTLD_NEXT and RTLD_DEFAULT depend on it).
 */
        .text
        .globl  dlsym
        .type   dlsym, @function
dlsym:
        .cfi_startproc
        endbr64
        cmpq    $-1, %rdi               /* RTLD_NEXT */
        je      1f
        testq   %rsi, %rsi
        je      1f
        cmpb    $'c', (%rsi)
        jne     1f
        cmpb    $'u', 1(%rsi)
        jne     1f
        movzbl  2(%rsi), %eax
        subl    $'A', %eax
        cmpl    $25, %eax
        ja      1f
        jmp     kj_dlsym_cuda
1:      movq    kj_real_dlsym(%rip), %rax
        testq   %rax, %rax
        je      2f
        jmp     *%rax
2:      pushq   %rdi                    /* first call of all: find the real one */
        .cfi_adjust_cfa_offset 8
        pushq   %rsi
        .cfi_adjust_cfa_offset 8
        subq    $8, %rsp
        .cfi_adjust_cfa_offset 8
        call    kj_find_real_dlsym
        addq    $8, %rsp
        .cfi_adjust_cfa_offset -8
        popq    %rsi
        .cfi_adjust_cfa_offset -8
        popq    %rdi
        .cfi_adjust_cfa_offset -8
        movq    kj_real_dlsym(%rip), %rax
        testq   %rax, %rax
        je      3f
        jmp     *%rax
3:      xorl    %eax, %eax
        ret
        .cfi_endproc
        .size   dlsym, . - dlsym
        .section .note.GNU-stack, "", @progbits
