"""BLAKE3 of many byte strings at once, with numpy (standard library and numpy only).

Written from the BLAKE3 paper; its terms. Lanes are chunks of 1024 bytes, or parent nodes of one level: one numpy operation
works on all of them. Besides whole hashes it gives the chaining values of subtrees, which ckptd's chunk table holds."""

import numpy as np

CHUNK_START, CHUNK_END, PARENT, ROOT, DERIVE_KEY_CONTEXT, DERIVE_KEY_MATERIAL = 1, 2, 4, 8, 32, 64
CHUNK_BYTES, BLOCK_BYTES = 1024, 64
IV = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], np.uint32
)
PERMUTATION = np.array([2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8])
# For each round: the message words of the column step (first and second addition), then of the diagonal step.
SCHEDULE = []
_words = np.arange(16)
for _ in range(7):
    SCHEDULE.append([_words[i:16:2][j : j + 4] for j in (0, 4) for i in (0, 1)])
    _words = _words[PERMUTATION]


def blake3(data, context: str | None = None) -> bytes:
    """BLAKE3 of `data`, or its key derivation mode under `context`."""
    if context is None:
        return subtrees([(data, 0, True)])[0]
    key = np.frombuffer(subtrees([(context.encode(), 0, True)], IV, DERIVE_KEY_CONTEXT)[0], "<u4")
    return subtrees([(data, 0, True)], key, DERIVE_KEY_MATERIAL)[0]


def parent(left: bytes, right: bytes, root: bool) -> bytes:
    """The node over two subtrees' chaining values."""
    block = np.frombuffer(left + right, "<u4").reshape(16, 1)
    return _to_bytes(_compress(IV[:, None], block, 0, BLOCK_BYTES, PARENT | (ROOT if root else 0)))[0]


def subtrees(pieces, key=IV, mode=0) -> list[bytes]:
    """For each (bytes, offset, whole): the chaining value of the subtree over bytes that begin at that offset of the
    input, or, where they are the whole of it, its hash."""
    counts = [max(1, -(-len(data) // CHUNK_BYTES)) for data, _, _ in pieces]
    nodes = _chunks(pieces, counts, key, mode)
    ends = np.cumsum(counts)
    trees = [nodes[:, end - count : end] for end, count in zip(ends, counts)]
    while any(tree.shape[1] > 1 for tree in trees):
        trees = _next_level(trees, [whole for _, _, whole in pieces], key, mode)
    return [_to_bytes(tree)[0] for tree in trees]


def _chunks(pieces, counts, key, mode) -> np.ndarray:
    """The chaining values [8, lanes] of all chunks of all pieces."""
    lanes = sum(counts)
    padded = np.zeros(lanes * CHUNK_BYTES, np.uint8)
    lengths, counters = np.full(lanes, CHUNK_BYTES), np.empty(lanes, np.uint64)
    root = np.zeros(lanes, np.uint32)
    lane = 0
    for (data, offset, whole), count in zip(pieces, counts):
        start = lane * CHUNK_BYTES
        padded[start : start + len(data)] = np.frombuffer(data, np.uint8)
        lengths[lane + count - 1] = len(data) - (count - 1) * CHUNK_BYTES
        counters[lane : lane + count] = np.arange(offset // CHUNK_BYTES, offset // CHUNK_BYTES + count, dtype=np.uint64)
        root[lane] = ROOT if whole and count == 1 else 0
        lane += count
    blocks = np.ascontiguousarray(padded.view("<u4").reshape(lanes, 16, 16).transpose(1, 2, 0))
    last = np.maximum(-(-lengths // BLOCK_BYTES), 1) - 1
    values = np.repeat(np.asarray(key, np.uint32)[:, None], lanes, axis=1)
    for index in range(int(last.max()) + 1):
        ends = last == index
        flags = np.full(lanes, mode | (CHUNK_START if index == 0 else 0), np.uint32)
        flags[ends] |= CHUNK_END | root[ends]
        length = np.clip(lengths - index * BLOCK_BYTES, 0, BLOCK_BYTES).astype(np.uint32)
        compressed = _compress(values, blocks[index], counters, length, flags)
        values = compressed if index == 0 else np.where(index <= last, compressed, values)
    return values


def _next_level(trees, wholes, key, mode):
    """Joins neighbours of each tree; an odd one at the end moves up as it is."""
    pairs = [tree.shape[1] // 2 for tree in trees]
    left = np.concatenate([tree[:, 0 : 2 * n : 2] for tree, n in zip(trees, pairs)], axis=1)
    right = np.concatenate([tree[:, 1 : 2 * n : 2] for tree, n in zip(trees, pairs)], axis=1)
    flags = [
        np.full(n, mode | PARENT | (ROOT if whole and tree.shape[1] == 2 else 0), np.uint32)
        for tree, n, whole in zip(trees, pairs, wholes)
    ]
    key = np.asarray(key, np.uint32)[:, None]
    joined = _compress(key, np.concatenate([left, right]), 0, BLOCK_BYTES, np.concatenate(flags))
    ends = np.cumsum(pairs)
    return [
        np.concatenate([joined[:, end - n : end], tree[:, 2 * n :]], axis=1) for tree, n, end in zip(trees, pairs, ends)
    ]


def _compress(value, block, counter, length, flags) -> np.ndarray:
    """The compression function on all lanes: chaining values [8, lanes], message blocks [16, lanes], and for each lane
    or for all of them the counter, the block's length and the flags. Returns the new chaining values."""
    lanes = block.shape[1]
    counter = np.broadcast_to(np.asarray(counter, np.uint64), lanes)
    a, b = np.empty((4, lanes), np.uint32), np.empty((4, lanes), np.uint32)
    a[:], b[:] = value[:4], value[4:]
    c = np.repeat(IV[:4, None], lanes, axis=1)
    d = np.empty((4, lanes), np.uint32)
    d[0], d[1], d[2], d[3] = counter & np.uint64(0xFFFFFFFF), counter >> np.uint64(32), length, flags
    for columns1, columns2, diagonals1, diagonals2 in SCHEDULE:
        a, b, c, d = _mix(a, b, c, d, block[columns1], block[columns2])
        b, c, d = b[[1, 2, 3, 0]], c[[2, 3, 0, 1]], d[[3, 0, 1, 2]]
        a, b, c, d = _mix(a, b, c, d, block[diagonals1], block[diagonals2])
        b, c, d = b[[3, 0, 1, 2]], c[[2, 3, 0, 1]], d[[1, 2, 3, 0]]
    return np.concatenate([a ^ c, b ^ d])


def _mix(a, b, c, d, first, second):
    """The function G on four columns (or diagonals) at once."""
    a += b
    a += first
    d = _rotate(d ^ a, 16)
    c += d
    b = _rotate(b ^ c, 12)
    a += b
    a += second
    d = _rotate(d ^ a, 8)
    c += d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


def _rotate(words, by) -> np.ndarray:
    rotated = words >> np.uint32(by)
    words <<= np.uint32(32 - by)
    rotated |= words
    return rotated


def _to_bytes(values) -> list[bytes]:
    return [row.tobytes() for row in np.ascontiguousarray(values.T).astype("<u4")]
