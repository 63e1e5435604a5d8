/* SPDX-License-Identifier: Apache-2.0
 *
 * dlsym for aarch64: see x86_64.S. The return address is in x30, which a tail-jump (br) leaves alone.
 */
        .text
        .globl  dlsym
        .type   dlsym, %function
dlsym:
        .cfi_startproc
        hint    #34                     /* bti c */
        cmn     x0, #1                  /* RTLD_NEXT */
        b.eq    1f
        cbz     x1, 1f
        ldrb    w9, [x1]
        cmp     w9, #'c'
        b.ne    1f
        ldrb    w9, [x1, #1]
        cmp     w9, #'u'
        b.ne    1f
        ldrb    w9, [x1, #2]
        sub     w9, w9, #'A'
        cmp     w9, #25
        b.hi    1f
        b       kj_dlsym_cuda
1:      adrp    x9, kj_real_dlsym
        ldr     x16, [x9, #:lo12:kj_real_dlsym]
        cbz     x16, 2f
        br      x16
2:      stp     x29, x30, [sp, #-32]!   /* first call of all: find the real one */
        .cfi_adjust_cfa_offset 32
        .cfi_offset 29, -32
        .cfi_offset 30, -24
        stp     x0, x1, [sp, #16]
        bl      kj_find_real_dlsym
        ldp     x0, x1, [sp, #16]
        ldp     x29, x30, [sp], #32
        .cfi_adjust_cfa_offset -32
        .cfi_restore 29
        .cfi_restore 30
        adrp    x9, kj_real_dlsym
        ldr     x16, [x9, #:lo12:kj_real_dlsym]
        cbz     x16, 3f
        br      x16
3:      mov     x0, #0
        ret
        .cfi_endproc
        .size   dlsym, . - dlsym
        .section .note.GNU-stack, "", %progbits
