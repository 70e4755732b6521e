# Objects, floats, dicts, strings and recursion.


class Body:
    def __init__(self, x, y, z, vx, vy, vz, mass):
        self.p, self.v, self.mass = [x, y, z], [vx, vy, vz], mass


def bodies(steps):
    some = [Body(i * 1.3 + 1, (i * 7 % 5) * 0.9, i * 0.3, 0.1 * (i % 3), -0.05 * i, 0.02, 1 + i % 2) for i in range(5)]
    for _ in range(steps):
        for i, a in enumerate(some):
            for b in some[i + 1:]:
                d = [a.p[k] - b.p[k] for k in range(3)]
                f = 0.001 / (sum(x * x for x in d) + 0.01) ** 1.5
                for k in range(3):
                    a.v[k] -= d[k] * b.mass * f
                    b.v[k] += d[k] * a.mass * f
        for a in some:
            for k in range(3):
                a.p[k] += 0.001 * a.v[k]
    return ["%.9f" % x for a in some for x in a.p]


def words(limit):
    count = {}
    with open("/in/text", encoding="latin-1") as f:
        for i, line in enumerate(f):
            if i >= limit:
                break
            for w in line.split():
                count[w] = count.get(w, 0) + 1
    return sorted(count.items(), key=lambda item: (-item[1], item[0]))[:10]


def queens(n, row=0, columns=0, left=0, right=0):
    if row == n:
        return 1
    free, found = ~(columns | left | right) & ((1 << n) - 1), 0
    while free:
        bit = free & -free
        free ^= bit
        found += queens(n, row + 1, columns | bit, (left | bit) << 1, (right | bit) >> 1)
    return found


print(bodies(35000))
print(words(200000))
print(queens(8), queens(9), queens(10), queens(10))
