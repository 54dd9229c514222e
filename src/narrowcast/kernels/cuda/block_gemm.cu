// y[m, n] = sum over blocks of 128 along K of scales times (sum over the block of a[m, k] b[n, k]), FP8 codes, Hopper.
//
// Names given by the compiler's options:
//   WGS      warpgroups that multiply; one more loads. A block of threads makes a tile of 64 WGS x 128
//   STAGES   steps of 128 along K whose codes and scales are in shared memory, or on their way
//   CM, CN   neighbouring blocks of threads that load together: CN share rows of a, CM rows of b, each loads a part
//   COLUMNS  scales of b: 0 one per 128 x 128, 1 one per row of b and 128 of K
//   OUT      0 float32, 1 bfloat16, 2 float16
//   GROUP    rows of clusters of tiles that are worked on before the next column
//
// The last warpgroup (its first thread) loads: the copy engine fills a ring of stages. The others multiply 64 x 128 each:
// a step goes through the tensor cores into registers of its own, from which it is promoted, scaled, into the float32
// totals, while another warpgroup has the tensor cores. What a warpgroup does between two steps must be short: addresses
// are in uniform registers, scales come with the codes.

typedef unsigned int u32;
typedef unsigned long long u64;

struct alignas(64) Map { u64 words[16]; };

constexpr int BLOCK = 128, CLUSTER = CM * CN;
constexpr int BM = 64 * WGS, BN = BLOCK;
constexpr int REGS = BN / 2;  // float32 sums of a warpgroup in a thread
constexpr int AHEAD = 4;      // scales of b along K that are loaded together where they are of squares: 16 bytes
constexpr int A_BYTES = BM * BLOCK, B_BYTES = BN * BLOCK;  // of a stage, as are the floats
constexpr int A_SCALES = BM, B_SCALES = COLUMNS ? BN : 32, B_LOADED = COLUMNS ? BN : AHEAD;
constexpr int BYTES = A_BYTES + B_BYTES + 4 * (A_SCALES + B_LOADED);
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

// The address of the same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ u32 place_in(u32 address, u32 rank) {
  u32 found;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(found) : "r"(address), "r"(rank));
  return found;
}

__device__ __forceinline__ void arrive(u32 far) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(far) : "memory");
}

__device__ __forceinline__ float read(u32 address) {
  float found;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(found) : "r"(address) : "memory");
  return found;
}

__device__ __forceinline__ float2 read2(u32 address) {
  float2 found;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(found.x), "=f"(found.y) : "r"(address) : "memory");
  return found;
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
// The lower half of a descriptor goes along with the address; the upper one is always the same.
__device__ __forceinline__ u32 descriptor(u32 address) { return (1u << 16) | (address >> 4); }
__device__ __forceinline__ u64 whole(u32 low) { return (0x40000040ull << 32) | low; }

#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(i) F4(i), F4(i + 4), F4(i + 8), F4(i + 12)

// d = keep * d + a b over 32 of K; x and y the lower halves of descriptors
__device__ __forceinline__ void multiply(float (&d)[REGS], u32 x, u32 y, u32 keep) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,"
      "%57,%58,%59,%60,%61,%62,%63}, %64, %65, p, 1, 1;\n}"
      : F16(0), F16(16), F16(32), F16(48) : "l"(whole(x)), "l"(whole(y)), "r"(keep));
}

// Keep the compiler from moving uses of d across this point.
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

// Store a row's sums; lane q of four holds columns 8 j + 2 q and the next: d[4 j + half], d[4 j + half + 1].
__device__ __forceinline__ void store(void* out, const float (&d)[REGS], int half, u32 row, u32 n, u32 rows, u32 cols) {
  u32 q = threadIdx.x % 4;
#if OUT == 0
  float* to = static_cast<float*>(out) + static_cast<u64>(row) * cols;
#pragma unroll
  for (int j = 0; j < BN / 8; j++) {
    u32 col = n + 8 * j + 2 * q;
    if (row < rows && col < cols)
      *reinterpret_cast<float2*>(to + col) = make_float2(d[4 * j + half], d[4 * j + half + 1]);
  }
#else
  unsigned short* to = static_cast<unsigned short*>(out) + static_cast<u64>(row) * cols;
#pragma unroll
  for (int g = 0; g < BN / 32; g++) {
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

// totals += sums * scales: s of this thread's two rows; of b one scale t, or one for each column from address `columns`
__device__ __forceinline__ void promote(float (&total)[REGS], const float (&d)[REGS], float2 s, float t, u32 columns) {
  if (COLUMNS) {
#pragma unroll
    for (int j = 0; j < BN / 8; j++) {
      float2 u = read2(columns + 32 * j);
      total[4 * j] = __fmaf_rn(__fmul_rn(d[4 * j], s.x), u.x, total[4 * j]);
      total[4 * j + 1] = __fmaf_rn(__fmul_rn(d[4 * j + 1], s.x), u.y, total[4 * j + 1]);
      total[4 * j + 2] = __fmaf_rn(__fmul_rn(d[4 * j + 2], s.y), u.x, total[4 * j + 2]);
      total[4 * j + 3] = __fmaf_rn(__fmul_rn(d[4 * j + 3], s.y), u.y, total[4 * j + 3]);
    }
  } else {
    float x = __fmul_rn(s.x, t), y = __fmul_rn(s.y, t);
#pragma unroll
    for (int j = 0; j < REGS; j++) total[j] = __fmaf_rn(d[j], j % 4 < 2 ? x : y, total[j]);
  }
}

// Stage and its phase along the ring.
struct Ring {
  u32 stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

// Give a step to the tensor cores: rows of a at x, of b at y.
__device__ __forceinline__ void start(float (&d)[REGS], u32 x, u32 y) {
  pin(d);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int j = 0; j < BLOCK / 32; j++) multiply(d, x + 2 * j, y + 2 * j, j);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void finish() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
    block_gemm(const __grid_constant__ Map map_a, const __grid_constant__ Map map_b, const __grid_constant__ Map map_sa,
               const __grid_constant__ Map map_sb, void* out, u32 rows, u32 cols, int steps) {
  extern __shared__ unsigned char raw[];
  u32 tiles_a = (shared(raw) + 1023) / 1024 * 1024, tiles_b = tiles_a + STAGES * A_BYTES;
  u32 scales_a = tiles_b + STAGES * B_BYTES, scales_b = scales_a + 4 * STAGES * A_SCALES;
  u32 full = scales_b + 4 * STAGES * B_SCALES, empty = full + 8 * STAGES;

  u32 rank = blockIdx.x % CLUSTER, role = __shfl_sync(ALL, threadIdx.x / 128, 0);
  u32 down = (rows + BM * CM - 1) / (BM * CM), across = (cols + BN * CN - 1) / (BN * CN);
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
        for (int k = 0; k < steps; k++, ring.next()) {
          u32 s = ring.stage, bar = full + 8 * s;
          wait(empty + 8 * s, ring.phase ^ 1);
          expect(bar, BYTES);
          u32 a = tiles_a + s * A_BYTES, b = tiles_b + s * B_BYTES;
          if (CN == 1) load(a, map_a, bar, k * BLOCK, tile.m);
          else load_for(mask_a, a + part_a * (A_BYTES / CN), map_a, bar, k * BLOCK, tile.m + part_a * (BM / CN));
          if (CM == 1) load(b, map_b, bar, k * BLOCK, tile.n);
          else load_for(mask_b, b + part_b * (B_BYTES / CM), map_b, bar, k * BLOCK, tile.n + part_b * (BN / CM));
          load(scales_a + 4 * s * A_SCALES, map_sa, bar, tile.m, k);
          load(scales_b + 4 * s * B_SCALES, map_sb, bar, COLUMNS ? tile.n : k / AHEAD * AHEAD,
               COLUMNS ? k : tile.n / BLOCK);
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MULTIPLYING));
    u32 lane = threadIdx.x % 32;
    u32 first = role * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;  // this thread's first row; the other lies 8 below
    // the blocks that load into this one's stages, or have them loaded together with theirs: a lane tells each
    bool tells = lane < CLUSTER && (lane / CN == rank / CN || lane % CN == rank % CN);
    u32 far = place_in(empty, lane % CLUSTER), own_rows = scales_a + 4 * first;
    u32 from_a = descriptor(tiles_a) + role * (64 * BLOCK / 16), from_b = descriptor(tiles_b);
    u32 own_columns = scales_b + (COLUMNS ? lane % 4 * 8 : 0);
    Ring ring;
    for (u32 t = blockIdx.x / CLUSTER; t < count; t += clusters) {
      Tile tile = place(t, down, across, rank);
      float total[REGS], d[REGS];
#pragma unroll
      for (int j = 0; j < REGS; j++) total[j] = 0.0f;
      auto leave = [&](u32 stage) {  // it may be filled again
        __syncwarp();
        if (tells) arrive(far + 8 * stage);
      };
#pragma unroll 1
      for (int k = 0; k < steps; k++) {
        u32 s = ring.stage;
        wait(full + 8 * s, ring.phase);
        start(d, from_a + s * (A_BYTES / 16), from_b + s * (B_BYTES / 16));
        u32 columns = own_columns + 4 * s * B_SCALES, at = own_rows + 4 * s * A_SCALES;
        float2 scales = make_float2(read(at), read(at + 32));
        float square = COLUMNS ? 0.0f : read(columns + k % AHEAD * 4);
        ring.next();
        pin(d);
        finish();
        pin(d);
        if (!COLUMNS) leave(s);
        promote(total, d, scales, square, columns);
        if (COLUMNS) leave(s);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) store(out, total, 2 * i, tile.m + first + 8 * i, tile.n, rows, cols);
    }
  }
  cluster_sync();
}
