// Polynomial coefficients, lowest power first. Written by tools/fit.py; docs/stream.md says where each is used.
#pragma once

// clang-format off
// -2 log(1 + x) / x; relative error below 3.4e-08
#define FASTINIT_NEG2LOG_F32 \
    -0x1.0000000000000p+1f, 0x1.0000000000000p+0f, -0x1.5557020000000p-1f, 0x1.00028a0000000p-1f, \
    -0x1.98cb160000000p-2f, 0x1.53b8c80000000p-2f, -0x1.3231b20000000p-2f, 0x1.22c2580000000p-2f, \
    -0x1.5c710e0000000p-3f

// sin(pi/4 sqrt(y)) / sqrt(y); relative error below 2.8e-08
#define FASTINIT_SINE_F32 \
    0x1.921fb60000000p-1f, -0x1.4abbec0000000p-4f, 0x1.466b220000000p-9f, -0x1.2f5a1e0000000p-15f

// cos(pi/4 sqrt(y)); relative error below 4.0e-08
#define FASTINIT_COSINE_F32 \
    0x1.0000000000000p+0f, -0x1.3bd39c0000000p-2f, 0x1.03b0680000000p-6f, -0x1.4e7de80000000p-12f

// z / x at -2 log(1 - x^2) = length, where z is the normal quantile of (1 + x) / 2; relative error below 9.7e-08
#define FASTINIT_QUANTILE_CENTRAL_F32 \
    0x1.40d9300000000p+0f, 0x1.4fff000000000p-3f, 0x1.0b32620000000p-8f, -0x1.a9cfee0000000p-12f, \
    -0x1.f1d3300000000p-17f, 0x1.9931b60000000p-19f, -0x1.b74b3a0000000p-24f, -0x1.48ebea0000000p-29f, \
    0x1.53f3620000000p-33f

// The normal quantile z of 1 - p, where s = sqrt(-2 log(4 p (1 - p))). In s less a shift; relative error below 4.9e-08
#define FASTINIT_QUANTILE_TAIL_F32 \
    0x1.71b68a0000000p+2f, 0x1.028d500000000p+0f, 0x1.0d048a0000000p-11f, -0x1.427da20000000p-12f, \
    0x1.35ea8e0000000p-14f, -0x1.c4f5f60000000p-17f, 0x1.5f85d20000000p-19f, -0x1.76fd780000000p-21f, \
    0x1.2c5a5e0000000p-24f, 0x1.d4810a0000000p-26f, -0x1.7e39060000000p-28f

// -log(z m(z)) / w at w = 1 / z^2, where m is Mills' ratio Q / phi; relative error below 1.3e-07
#define FASTINIT_MILLS_F32 \
    0x1.fffffc0000000p-1f, -0x1.3ff8360000000p+1f, 0x1.8857920000000p+3f, -0x1.40fa6e0000000p+6f, \
    0x1.a6bf5a0000000p+8f

// -2 log(1 + x) / x; relative error below 1.2e-17
#define FASTINIT_NEG2LOG_F64 \
    -0x1.0000000000000p+1, 0x1.0000000000000p+0, -0x1.5555555555500p-1, 0x1.fffffffffef72p-2, \
    -0x1.99999999a6ccdp-2, 0x1.5555555668378p-2, -0x1.2492491f973b7p-2, 0x1.ffffff2ac5e1ap-3, \
    -0x1.c71c73249b3fdp-3, 0x1.9999c36f4d140p-3, -0x1.745d19138dd46p-3, 0x1.5550b9b25a307p-3, \
    -0x1.3b0e23d251141p-3, 0x1.24dc71724effap-3, -0x1.11b33f4daec09p-3, 0x1.fb1944ebe5abbp-4, \
    -0x1.d14b89f60de9dp-4, 0x1.d4c4051bac60ap-4, -0x1.0a2e298fb0646p-3, 0x1.dff38a0ca67a1p-4, \
    -0x1.9b952a4b91f70p-5

// sin(pi/4 sqrt(y)) / sqrt(y); relative error below 3.9e-17
#define FASTINIT_SINE_F64 \
    0x1.921fb54442d18p-1, -0x1.4abbce625be01p-4, 0x1.466bc67753d4ep-9, -0x1.32d2ccde110d9p-15, \
    0x1.50782aac71d00p-22, -0x1.e2fa7535e8e6ap-30, 0x1.e0685fa63cc6bp-38, 0x1.af71d8838ca26p-47

// cos(pi/4 sqrt(y)); relative error below 3.9e-19
#define FASTINIT_COSINE_F64 \
    0x1.0000000000000p+0, -0x1.3bd3cc9be45dep-2, 0x1.03c1f081b5a66p-6, -0x1.55d3c7e3c301bp-12, \
    0x1.e1f5067b5447ap-19, -0x1.a6d1e6f94b3efp-26, 0x1.f9c87823cd57ep-34, -0x1.b15c7caf9f5eep-42

// z / x at -2 log(1 - x^2) = length, where z is the normal quantile of (1 + x) / 2; relative error below 7.2e-17
#define FASTINIT_QUANTILE_CENTRAL_F64 \
    0x1.40d931ff62706p+0, 0x1.4ffddeaa22ce3p-3, 0x1.0b9a8ec5d05ffp-8, -0x1.b0d7e3736a9d2p-12, \
    -0x1.7bc0df1db45dap-17, 0x1.147b5bf85278ep-19, 0x1.7f75f6b654dbdp-25, -0x1.808c546f239b0p-27, \
    -0x1.be154d66b2d53p-33, 0x1.0d95edc82d8cfp-34, 0x1.e19506f68bee3p-40, -0x1.41aca02367231p-41, \
    0x1.9afad605a4b84p-45, -0x1.148aafd27ed89p-47, 0x1.ab074d4f0c0fcp-50, -0x1.950727af552aep-53, \
    0x1.e5f9852bc47a3p-57, -0x1.7e91c9cb40ea7p-61, 0x1.8508f1ca8224dp-66, -0x1.d4582be21b5e1p-72, \
    0x1.feb47b6f77847p-79

// The normal quantile z of 1 - p, where s = sqrt(-2 log(4 p (1 - p))). In s less a shift; relative error below 3.1e-17
#define FASTINIT_QUANTILE_TAIL_NEAR_F64 \
    0x1.10edf78ed25e4p+2, 0x1.013d039077c90p+0, 0x1.dfbd13b45186dp-9, -0x1.607ae2de5b321p-10, \
    0x1.59e37c3c2feb8p-12, -0x1.e23ff392640c3p-15, 0x1.4e518dbfb119cp-19, 0x1.aaf08cbc92726p-19, \
    -0x1.92dbf791d7e20p-20, 0x1.5dc117c5f9c08p-22, 0x1.85a1baa3181afp-28, -0x1.05d7efdf4cc72p-25, \
    0x1.658ebcb3fba17p-27, -0x1.1b4e34efab121p-30, -0x1.226cf1262a876p-31, 0x1.27f07c7cd1850p-32, \
    -0x1.79f9e3a9786bdp-35, -0x1.5c3d8338144eap-37, 0x1.7f3258cb3a252p-38, -0x1.bf4a6709ef0c0p-42, \
    -0x1.e41612d6d8171p-44

// The normal quantile z of 1 - p, where s = sqrt(-2 log(4 p (1 - p))). In s less a shift; relative error below 3.7e-17
#define FASTINIT_QUANTILE_TAIL_FAR_F64 \
    0x1.11bdb1ed16f6ep+3, 0x1.02699ea2d971fp+0, -0x1.6d583ef034978p-12, -0x1.de4b5d69a13bfp-17, \
    0x1.95c2e2026cfacp-18, -0x1.1d9655104faf2p-20, 0x1.487c48e06b48cp-23, -0x1.581c2e3057809p-26, \
    0x1.54db124feec6cp-29, -0x1.44bacab6f77e7p-32, 0x1.2c210cb64f651p-35, -0x1.0db1c2b5b87bep-38, \
    0x1.d9cb0551d55a2p-42, -0x1.af768d6300f07p-45, 0x1.7997533c83171p-48, -0x1.599c8e14baf7bp-54, \
    -0x1.2a9e0d861a5fep-55, -0x1.80057d007c6dbp-55, 0x1.e8aa0f4ab462ap-58, 0x1.49ebef14146dep-59, \
    -0x1.0571e0760decap-61

// -log(z m(z)) / w at w = 1 / z^2, where m is Mills' ratio Q / phi; relative error below 5.8e-14
#define FASTINIT_MILLS_F64 \
    0x1.ffffffffffdecp-1, -0x1.3ffffffedfe20p+1, 0x1.8aaaa90b5a57bp+3, -0x1.60ff8a4bab3fbp+6, \
    0x1.98084cc77ebf3p+9, -0x1.1ec5b36fc9cc9p+13, 0x1.d1ecd89ccacffp+16, -0x1.92b6b328c42c3p+20, \
    0x1.3f48e9cba3768p+24, -0x1.75105adb5342bp+27, 0x1.bc7567521cfcfp+29

