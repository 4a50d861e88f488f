"""Optimized HLO read: a program of which everything is counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from jaxcolor.benchmark import hlo

PROGRAM = """HloModule jit_step, is_scheduled=true

%body (parameter: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %parameter = (s32[], f32[8,16]{1,0}) parameter(0)
  %get-tuple-element.1 = s32[] get-tuple-element(%parameter), index=0
  %get-tuple-element.2 = f32[8,16]{1,0} get-tuple-element(%parameter), index=1
  %add.1 = f32[8,16]{1,0} add(%get-tuple-element.2, %get-tuple-element.2)
  ROOT %tuple.1 = (s32[], f32[8,16]{1,0}) tuple(%get-tuple-element.1, %add.1)
}

%condition (parameter.1: (s32[], f32[8,16])) -> pred[] {
  %parameter.1 = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %constant.2 = pred[] constant(true)
}

%fused_dot (param_0: bf16[8,32], param_1: bf16[32,16]) -> f32[8,16] {
  %param_0 = bf16[8,32]{1,0} parameter(0)
  %param_1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,16]{1,0} dot(%param_0, %param_1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_again (param_0.2: bf16[8,32], param_1.2: bf16[32,16]) -> f32[8,16] {
  %param_0.2 = bf16[8,32]{1,0} parameter(0)
  %param_1.2 = bf16[32,16]{1,0} parameter(1)
  %inner = f32[8,16]{1,0} fusion(%param_0.2, %param_1.2), kind=kOutput, calls=%fused_dot
  ROOT %negate.1 = f32[8,16]{1,0} negate(%inner)
}

%fused_sum (param_0.1: bf16[2,7,7,64]) -> f32[64] {
  %param_0.1 = bf16[2,7,7,64]{3,2,1,0} parameter(0)
  %convert.1 = f32[2,7,7,64]{3,2,1,0} convert(%param_0.1)
  %constant.1 = f32[] constant(0)
  ROOT %reduce.1 = f32[64]{0} reduce(%convert.1, %constant.1), dimensions={0,1,2}, to_apply=%sum
}

ENTRY %main (image: bf16[2,14,14,32], kernel: bf16[64,3,3,32], a: bf16[8,32], b: bf16[32,16]) -> f32[64] {
  %image = bf16[2,14,14,32]{3,2,1,0} parameter(0)
  %kernel = bf16[64,3,3,32]{3,2,1,0} parameter(1)
  %a = bf16[8,32]{1,0} parameter(2)
  %b = bf16[32,16]{1,0} parameter(3)
  %conv = (bf16[2,7,7,64]{3,2,1,0}, u8[4096]{0}) custom-call(%image, /*index=1*/%kernel), FORWARD
  %to_kernel = (bf16[64,3,3,32]{3,2,1,0}, u8[0]{0}) custom-call(%image, %conv#0), TO_KERNEL
  %product = f32[8,16]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused_dot
  %nested = f32[8,16]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused_again
  %constant.3 = s32[] constant(0)
  %tuple.2 = (s32[], f32[8,16]{1,0}) tuple(%constant.3, %product)
  %while.1 = (s32[], f32[8,16]{1,0}) while(%tuple.2), condition=%condition, body=%body, backend_config=FIVE
  %sum.1 = f32[64]{0} fusion(%conv#0), kind=kInput, calls=%fused_sum
  %all-reduce-start = f32[64]{0} all-reduce-start(%sum.1), replica_groups={}, to_apply=%sum
  ROOT %all-reduce-done = f32[64]{0} all-reduce-done(%all-reduce-start)
}
"""
for short, call in (('FORWARD', 'convForward'), ('TO_KERNEL', 'convBackwardFilter')):
    window = 'window={size=3x3 stride=2x2 pad=0_1x0_1}, dim_labels=b01f_o01i->b01f'
    PROGRAM = PROGRAM.replace(short, f'{window}, custom_call_target="__cudnn${call}"')
PROGRAM = PROGRAM.replace('FIVE', '{"known_trip_count":{"n":"5"}}')
IMAGE, OUT, KERNEL = 2 * 14 * 14 * 32 * 2, 2 * 7 * 7 * 64 * 2, 64 * 3 * 3 * 32 * 2  # bytes
CONVOLUTION = 2 * (2 * 7 * 7 * 64) * (3 * 3 * 32)


def test_kernels_of_a_program():
    found = {kernel.name: kernel[1:6] for kernel in hlo.kernels(hlo.parse(PROGRAM))}
    assert found == {
        'conv': ('convolution', 1, CONVOLUTION, IMAGE + KERNEL + OUT, 'bf16'),  # without the library's 4,096 bytes
        'to_kernel': ('convolution', 1, CONVOLUTION, IMAGE + KERNEL + OUT, 'bf16'),
        'product': ('matrix product', 1, 2 * 8 * 16 * 32, 2 * (8 * 32 + 32 * 16) + 4 * 8 * 16, 'bf16'),
        'nested': ('matrix product', 1, 2 * 8 * 16 * 32, 2 * (8 * 32 + 32 * 16) + 4 * 8 * 16, 'bf16'),
        'add.1': ('add', 5, 0, 2 * 4 * 8 * 16, 'f32'),  # five times; its operand is read once
        'sum.1': ('reduction', 1, 0, OUT + 4 * 64, 'f32'),
        'all-reduce-start': ('all-reduce', 1, 0, 2 * 4 * 64, 'f32'),
    }


def test_roofline_is_the_longer_of_computing_and_moving_summed():
    kernels = hlo.kernels(hlo.parse(PROGRAM))
    computing = hlo.roofline(kernels, {'bf16': 1e3, 'f32': 1e3}, 1e30, efficiency=0.5)
    assert computing.seconds == pytest.approx((2 * CONVOLUTION + 2 * (2 * 8 * 16 * 32)) / 500)
    moving = hlo.roofline(kernels, {'bf16': 1e30, 'f32': 1e30}, 10.0)
    assert moving.seconds == pytest.approx(moving.moved / 10)
    assert (moving.kernels, moving.collectives) == (11, {'all-reduce': 1})
    assert moving.flops == 2 * CONVOLUTION + 2 * (2 * 8 * 16 * 32)


def test_facts_of_convolutions():
    kernels = hlo.kernels(hlo.parse(PROGRAM))
    assert hlo.windows(kernels) == [(3, 3), (3, 3)]
    assert hlo.layouts(kernels) == {'b01f': 2}


def test_a_text_without_a_program():
    with pytest.raises(ValueError, match='ENTRY'):
        hlo.parse('HloModule empty')


@pytest.mark.parametrize(
    ('image', 'kernel', 'stride', 'pads', 'hole', 'gap', 'groups'),
    [
        ((2, 14, 15, 4), (3, 3, 4, 8), (2, 2), ((0, 1), (1, 1)), (1, 1), (1, 1), 1),
        ((2, 9, 9, 6), (5, 3, 1, 6), (1, 1), ((2, 2), (1, 1)), (1, 1), (1, 1), 6),
        ((2, 7, 8, 4), (3, 3, 4, 8), (1, 1), ((1, 2), (2, 2)), (2, 2), (1, 1), 1),
        ((2, 9, 12, 4), (3, 3, 4, 8), (1, 1), ((2, 2), (-1, 3)), (1, 1), (2, 3), 1),
        ((1, 1, 1, 4), (8, 8, 4, 2), (1, 1), ((7, 7), (7, 7)), (1, 1), (1, 1), 1),  # a product, as TPUs have it
    ],
)
def test_convolutions_are_counted_without_padding_and_holes(image, kernel, stride, pads, hole, gap, groups):
    options = {'lhs_dilation': hole, 'rhs_dilation': gap, 'feature_group_count': groups}
    numbers = ('NHWC', 'HWIO', 'NHWC')
    ones = jnp.ones(image), jnp.ones(kernel)
    out = jax.lax.conv_general_dilated(*ones, stride, pads, dimension_numbers=numbers, **options)

    def text(name, sides):
        return f'{name}={"x".join(map(str, sides))}'

    def shape(sides):
        return f'f32[{",".join(map(str, sides))}]{{3,2,1,0}}'

    window = ' '.join(
        [
            text('size', kernel[:2]),
            text('stride', stride),
            text('pad', [f'{low}_{high}' for low, high in pads]),
            text('lhs_dilate', hole),
            text('rhs_dilate', gap),
        ]
    )
    program = f"""HloModule jit_step

ENTRY %main (image: {shape(image)}, kernel: {shape(kernel)}) -> {shape(out.shape)} {{
  %image = {shape(image)} parameter(0)
  %kernel = {shape(kernel)} parameter(1)
  ROOT %conv = {shape(out.shape)} convolution(%image, %kernel), window={{{window}}}, dim_labels=b01f_01io->b01f
}}
"""
    (found,) = hlo.kernels(hlo.parse(program))
    assert found.flops == 2 * int(out.sum())
