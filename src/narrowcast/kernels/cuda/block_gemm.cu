// y[m, n] = sum over blocks of 128 along K of scales times (sum over the block of a[m, k] b[n, k]), FP8 codes, Hopper.
//
// Names given by the compiler's options:
//   WGS             warpgroups that multiply; one more loads
//   MSUB, NSUB, WN  each of them owns MSUB x NSUB pieces of 64 x WN; a block of threads 64 WGS MSUB x NSUB WN
//   STAGES          tiles of 128 along K in flight
//   CM, CN          neighbouring blocks of threads that load together: CN share rows of a, CM rows of b, each loads a part
//   COLUMNS         scales of b: 0 one per 128 x 128, 1 one per row of b and 128 of K
//   HELD            a's codes go through registers (1) or straight from shared memory (0)
//   DEPTH           pieces of a warpgroup in the tensor cores at once
//   OUT             0 float32, 1 bfloat16, 2 float16
//   GROUP           clusters in a column of tiles that are worked on before the next column
//
// The last warpgroup (its first thread) loads: the copy engine fills a ring of stages. The others multiply: each piece of
// 128 along K goes through the tensor cores into registers of its own, from which it is promoted, scaled, into the
// float32 totals, while another piece, mostly of another warpgroup, has the tensor cores.

typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(64) Map { u64 words[16]; };

constexpr int BLOCK = 128;
constexpr int WG_ROWS = 64 * MSUB;
constexpr int BM = WGS * WG_ROWS, BN = NSUB * WN;
constexpr int A_BYTES = BM * BLOCK, B_BYTES = BN * BLOCK, SA_BYTES = BM * 4, SB_BYTES = COLUMNS ? BN * 4 : 0;
constexpr int BYTES = A_BYTES + B_BYTES + SA_BYTES + SB_BYTES;
#define PIECES (MSUB * NSUB)
constexpr int CLUSTER = CM * CN;
constexpr int REGS = WN / 2;  // float32 sums of a piece in a thread
constexpr u32 ALL = 0xffffffff;
constexpr int THREADS = 128 * WGS + 128;
// Registers of a thread: what the block was given at its launch (168 or 128 for each), shared out anew.
constexpr int LOADING = WGS == 2 ? 40 : 32, MULTIPLYING = WGS == 2 ? 232 : 160;

__device__ __forceinline__ u32 shared(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrier_init(u32 bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ __forceinline__ void expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

__device__ __forceinline__ void wait(u32 bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra.uni over;\nbra.uni again;\nover:\n}"
      ::"r"(bar), "r"(parity) : "memory");
}

// Arrive at the same barrier of block `rank` of the pair.
__device__ __forceinline__ void arrive(u32 bar, u32 rank) {
  asm volatile(
      "{\n.reg .b32 far;\nmapa.shared::cluster.u32 far, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [far];\n}" ::"r"(bar), "r"(rank) : "memory");
}

__device__ __forceinline__ void load(u32 to, const Map& map, u32 bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
      ::"r"(to), "l"(&map), "r"(bar), "r"(x), "r"(y) : "memory");
}

// Load the same into each block of threads that `mask` names.
__device__ __forceinline__ void load_for(u32 mask, u32 to, const Map& map, u32 bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4}], [%2], %5;"
      ::"r"(to), "l"(&map), "r"(bar), "r"(x), "r"(y), "h"(static_cast<unsigned short>(mask)) : "memory");
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Rows of 128 bytes in groups of eight, swizzled by 128 bytes: what the copy engine wrote and the tensor cores read.
__device__ __forceinline__ u64 descriptor(u32 address) {
  return (1ull << 62) | (64ull << 32) | (1ull << 16) | ((address & 0x3ffff) >> 4);
}

#define F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(d, i) F4(d, i), F4(d, i + 4), F4(d, i + 8), F4(d, i + 12)
#define F32(d) F16(d, 0), F16(d, 16)
#define F64(d) F32(d), F16(d, 32), F16(d, 48)
#define N32                                                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31"
#define N64                                                                                                         \
  N32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58," \
      "%59,%60,%61,%62,%63"
#define START(p) "{\n.reg .pred p;\nsetp.ne.b32 p, %" p ", 0;\nwgmma.mma_async.sync.aligned.m64n"
#define TYPES "k32.f32.e4m3.e4m3 {"
#define SHARED(n, list, a, b, p, ...) /* a and b by descriptors */                                            \
  asm volatile(START(p) n TYPES list "}, %" a ", %" b ", p, 1, 1;\n}" : __VA_ARGS__ : "l"(x), "l"(y), "r"(keep))
#define REGISTERS(n, list, a, b, c, d, y_, p, ...) /* a in registers */                                         \
  asm volatile(START(p) n TYPES list "}, {%" a ", %" b ", %" c ", %" d "}, %" y_ ", p, 1, 1;\n}"                \
               : __VA_ARGS__ : "r"(h[0]), "r"(h[1]), "r"(h[2]), "r"(h[3]), "l"(y), "r"(keep))

// d = keep * d + a b over 32 of K; a by descriptor x or in registers h
__device__ __forceinline__ void multiply(float (&d)[REGS], u64 x, const u32* h, u64 y, u32 keep) {
#if WN == 64 && HELD
  REGISTERS("64", N32, "32", "33", "34", "35", "36", "37", F32(d));
#elif WN == 128 && HELD
  REGISTERS("128", N64, "64", "65", "66", "67", "68", "69", F64(d));
#elif WN == 128
  SHARED("128", N64, "64", "65", "66", F64(d));
#else
#error WN is 128, or 64 with HELD
#endif
}

// The 16 x 128 codes of a warp as the tensor cores take them, from rows that lie swizzled at `from`.
__device__ __forceinline__ void hold(u32 (&h)[BLOCK / 8], u32 from) {
  u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 % 4 * 16 + lane % 16;
#pragma unroll
  for (int j = 0; j < BLOCK / 32; j++) {
    u32 at = from + row * BLOCK + (((2 * j + lane / 16) ^ (lane % 8)) * 16);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(h[4 * j]), "=r"(h[4 * j + 1]), "=r"(h[4 * j + 2]), "=r"(h[4 * j + 3]) : "r"(at) : "memory");
  }
}

template <int LEFT> __device__ __forceinline__ void finish() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

__device__ __forceinline__ void pin(float (&d)[REGS]) {
#pragma unroll
  for (int i = 0; i < REGS; i++) asm volatile("" : "+f"(d[i])::"memory");
}

struct Tile { u32 m, n; };

// Tile of this block of threads: clusters down a group of GROUP, then to the right, so that a wave's tiles share operands.
__device__ __forceinline__ Tile place(u32 t, u32 down, u32 across, u32 rank) {
  u32 group = GROUP * across, first = t / group * GROUP;
  u32 rows = min(down - first, GROUP);
  u32 m = first + t % group % rows, n = t % group / rows;
  return Tile{(CM * m + rank / CN) * BM, (CN * n + rank % CN) * BN};
}

__device__ __forceinline__ u32 pack(float low, float high) {
  u32 found;
#if OUT == 1
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(found) : "f"(high), "f"(low));
#endif
  return found;
}

// Store a row's sums of one piece; lane q of four holds columns 8 j + 2 q and the next: d[4 j + half], d[4 j + half + 1].
__device__ __forceinline__ void store(void* out, const float (&d)[REGS], int half, u32 row, u32 n, u32 rows, u32 cols) {
  u32 q = threadIdx.x % 4;
#if OUT == 0
  float* to = static_cast<float*>(out) + static_cast<u64>(row) * cols;
#pragma unroll
  for (int j = 0; j < WN / 8; j++) {
    u32 col = n + 8 * j + 2 * q;
    if (row < rows && col < cols)
      *reinterpret_cast<float2*>(to + col) = make_float2(d[4 * j + half], d[4 * j + half + 1]);
  }
#else
  unsigned short* to = static_cast<unsigned short*>(out) + static_cast<u64>(row) * cols;
#pragma unroll
  for (int g = 0; g < WN / 32; g++) {
    u32 p[4];
#pragma unroll
    for (int c = 0; c < 4; c++) p[c] = pack(d[16 * g + 4 * c + half], d[16 * g + 4 * c + half + 1]);
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {  // the four lanes' 4 x 4 words, transposed: each gets eight columns
      bool odd = q & bit;
      int other = 3 - bit;  // the two words apart from the ones exchanged
      u32 x = __shfl_xor_sync(ALL, odd ? p[0] : p[bit], bit);
      u32 y = __shfl_xor_sync(ALL, odd ? p[other] : p[3], bit);
      p[0] = odd ? x : p[0], p[bit] = odd ? p[bit] : x;
      p[other] = odd ? y : p[other], p[3] = odd ? p[3] : y;
    }
    u32 col = n + 32 * g + 8 * q;
    if (row < rows && col < cols) *reinterpret_cast<uint4*>(to + col) = make_uint4(p[0], p[1], p[2], p[3]);
  }
#endif
}

// totals += sums * scales: s of this thread's two rows; t of b, one for each column, or one up to column `edge` and one
// from there on.
__device__ __forceinline__ void promote(float (&total)[REGS], const float (&d)[REGS], float s0, float s1,
                                        const float* t, int edge) {
#if COLUMNS
#pragma unroll
  for (int j = 0; j < WN / 8; j++) {
    float2 u = *reinterpret_cast<const float2*>(t + 8 * j);
    total[4 * j] = __fmaf_rn(__fmul_rn(d[4 * j], s0), u.x, total[4 * j]);
    total[4 * j + 1] = __fmaf_rn(__fmul_rn(d[4 * j + 1], s0), u.y, total[4 * j + 1]);
    total[4 * j + 2] = __fmaf_rn(__fmul_rn(d[4 * j + 2], s1), u.x, total[4 * j + 2]);
    total[4 * j + 3] = __fmaf_rn(__fmul_rn(d[4 * j + 3], s1), u.y, total[4 * j + 3]);
  }
#else
  float x0 = __fmul_rn(s0, t[0]), x1 = __fmul_rn(s0, t[1]), y0 = __fmul_rn(s1, t[0]), y1 = __fmul_rn(s1, t[1]);
#pragma unroll
  for (int j = 0; j < WN / 8; j++) {
    float x = 8 * j < edge ? x0 : x1, y = 8 * j < edge ? y0 : y1;
    total[4 * j] = __fmaf_rn(d[4 * j], x, total[4 * j]);
    total[4 * j + 1] = __fmaf_rn(d[4 * j + 1], x, total[4 * j + 1]);
    total[4 * j + 2] = __fmaf_rn(d[4 * j + 2], y, total[4 * j + 2]);
    total[4 * j + 3] = __fmaf_rn(d[4 * j + 3], y, total[4 * j + 3]);
  }
#endif
}

// Stage and its phase along the ring.
struct Ring {
  u32 stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

// What a warpgroup needs of a stage.
struct Step {
  u64 a, b;
  const float *sa, *sb;
  float now[2];  // b's scales where they are of squares
  u32 held[BLOCK / 8];
};

// Give piece i of a step to the tensor cores.
__device__ __forceinline__ void start(float (&d)[REGS], const Step& step, int i) {
  int m = i / NSUB, n = i % NSUB;
  pin(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int j = 0; j < BLOCK / 32; j++)
    multiply(d, step.a + (m * 64 * BLOCK + 32 * j) / 16, step.held + (HELD ? 4 * j : 0),
             step.b + (n * WN * BLOCK + 32 * j) / 16, j);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void add(float (&total)[REGS], float (&d)[REGS], const Step& step, float2 s, int i, int edge) {
  int n = i % NSUB;
  promote(total, d, s.x, s.y, COLUMNS ? step.sb + n * WN : step.now, edge - n * WN);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
    block_gemm(const __grid_constant__ Map map_a, const __grid_constant__ Map map_b, const __grid_constant__ Map map_sa,
               const __grid_constant__ Map map_sb, const float* scale_b, void* out, u32 rows, u32 cols, int steps) {
  extern __shared__ unsigned char raw[];
  unsigned char* tiles_a = raw + (1024 - shared(raw) % 1024) % 1024;
  unsigned char* tiles_b = tiles_a + STAGES * A_BYTES;
  float* scales_a = reinterpret_cast<float*>(tiles_b + STAGES * B_BYTES);
  float* scales_b = scales_a + STAGES * BM;
  u32 full = shared(scales_b + (COLUMNS ? STAGES * BN : 0)), empty = full + 8 * STAGES;

  u32 rank = blockIdx.x % CLUSTER, role = threadIdx.x / 128;
  u32 down = (rows + BM * CM - 1) / (BM * CM), across = (cols + BN * CN - 1) / (BN * CN);
  int passes = DEPTH == 2 && PIECES == 1 ? (steps + 1) / 2 * 2 : steps;
  u32 count = down * across, clusters = gridDim.x / CLUSTER;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++)
      barrier_init(full + 8 * i, 1), barrier_init(empty + 8 * i, (CM + CN - 1) * 4 * WGS);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_sync();

  if (role == WGS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(LOADING));
    if (threadIdx.x == 128 * WGS) {
      u32 part_a = rank % CN, part_b = rank / CN;  // of the tiles that are shared, what this block loads
      u32 mask_a = ((1 << CN) - 1) << (rank / CN * CN), mask_b = 1 << rank % CN;
      for (int i = 1; i < CM; i++) mask_b |= mask_b << CN;
      Ring ring;
      for (u32 t = blockIdx.x / CLUSTER; t < count; t += clusters) {
        Tile tile = place(t, down, across, rank);
#pragma unroll 1
        for (int k = 0; k < passes; k++, ring.next()) {
          u32 s = ring.stage, bar = full + 8 * s;
          wait(empty + 8 * s, ring.phase ^ 1);
          expect(bar, BYTES);
          u32 a = shared(tiles_a) + s * A_BYTES, b = shared(tiles_b) + s * B_BYTES;
          if (CN == 1) load(a, map_a, bar, k * BLOCK, tile.m);
          else load_for(mask_a, a + part_a * (A_BYTES / CN), map_a, bar, k * BLOCK, tile.m + part_a * (BM / CN));
          if (CM == 1) load(b, map_b, bar, k * BLOCK, tile.n);
          else load_for(mask_b, b + part_b * (B_BYTES / CM), map_b, bar, k * BLOCK, tile.n + part_b * (BN / CM));
          load(shared(scales_a + s * BM), map_sa, bar, tile.m, k);
          if (COLUMNS) load(shared(scales_b + s * BN), map_sb, bar, tile.n, k);
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MULTIPLYING));
    u32 lane = threadIdx.x % 32;
    u32 first = role * WG_ROWS + threadIdx.x / 32 % 4 * 16 + lane / 4;  // this thread's first row, of a piece's first 64
    // the blocks that load into this one's stages, or have them loaded together with theirs: a lane tells each
    bool tells = lane < CLUSTER && (lane / CN == rank / CN || lane % CN == rank % CN);
    Ring ring;
    for (u32 t = blockIdx.x / CLUSTER; t < count; t += clusters) {
      Tile tile = place(t, down, across, rank);
      float total[PIECES][REGS];
#pragma unroll
      for (int i = 0; i < PIECES; i++)
#pragma unroll
        for (int j = 0; j < REGS; j++) total[i][j] = 0.0f;
      // b's scales of the (at most two) squares that these columns lie in, fetched one step ahead
      int edge = BN % BLOCK ? BLOCK - tile.n % BLOCK : BLOCK;
      const float* square = scale_b + static_cast<u64>(tile.n / BLOCK) * steps;
      int further = BN > BLOCK && tile.n + edge < cols ? steps : 0;
      float ahead[2] = {0.0f, 0.0f};
      if (!COLUMNS && tile.n < cols) ahead[0] = __ldg(square), ahead[1] = __ldg(square + further);

      auto enter = [&](Step& step, int k) {  // wait for the next stage
        step.now[0] = ahead[0], step.now[1] = ahead[1];
        if (!COLUMNS && tile.n < cols && k + 1 < steps)
          ahead[0] = __ldg(square + k + 1), ahead[1] = __ldg(square + k + 1 + further);
        u32 s = ring.stage, a = shared(tiles_a) + s * A_BYTES + role * (WG_ROWS * BLOCK);
        wait(full + 8 * s, ring.phase);
        step.a = descriptor(a), step.b = descriptor(shared(tiles_b) + s * B_BYTES);
        step.sa = scales_a + s * BM + first, step.sb = scales_b + s * BN + lane % 4 * 2;
        if (HELD) hold(step.held, a);
      };
      auto leave = [&](u32 s) {  // the stage may be filled again
        __syncwarp();
        if (tells) arrive(empty + 8 * s, lane);
      };
#if DEPTH == 2 && PIECES == 1
#pragma unroll 1
      for (int k = 0; k < passes; k += 2) {  // two steps at once; past the last one codes and scales are zeros
        Step step[2];
        float d[2][REGS];
        float2 s[2];
        u32 stage[2];
#pragma unroll
        for (int i = 0; i < 2; i++, ring.next()) {
          stage[i] = ring.stage;
          enter(step[i], k + i);
          s[i] = make_float2(step[i].sa[0], step[i].sa[8]);
          start(d[i], step[i], 0);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
          pin(d[i]);
          if (i) finish<0>(); else finish<1>();
          pin(d[i]);
          if (!COLUMNS) leave(stage[i]);
          add(total[0], d[i], step[i], s[i], 0, edge);
          if (COLUMNS) leave(stage[i]);
        }
      }
#else
#pragma unroll 1
      for (int k = 0; k < steps; k++, ring.next()) {
        Step step;
        enter(step, k);
        float d[DEPTH][REGS];
        float2 s;
        if (DEPTH == 2) start(d[0], step, 0);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
          int m = i / NSUB;
          if (i % NSUB == 0) s = make_float2(step.sa[64 * m], step.sa[64 * m + 8]);
          if (DEPTH == 1) start(d[0], step, i);
          else if (i + 1 < PIECES) start(d[(i + 1) % DEPTH], step, i + 1);
          pin(d[i % DEPTH]);
          if (DEPTH == 2 && i + 1 < PIECES) finish<1>(); else finish<0>();
          pin(d[i % DEPTH]);
          if (!COLUMNS && i == PIECES - 1) leave(ring.stage);
          add(total[i], d[i % DEPTH], step, s, i, edge);
        }
        if (COLUMNS) leave(ring.stage);
      }
#endif
#pragma unroll
      for (int i = 0; i < 2 * PIECES; i++) {
        u32 row = tile.m + first + 64 * (i / 2 / NSUB) + i % 2 * 8, n = tile.n + i / 2 % NSUB * WN;
        store(out, total[i / 2], i % 2 * 2, row, n, rows, cols);
      }
    }
  }
  cluster_sync();
}
