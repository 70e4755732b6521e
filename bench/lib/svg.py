"""A drawing in SVG, as small as charts of benchmarks need."""
from xml.sax.saxutils import escape


class Drawing:
    def __init__(self, width, height, title):
        self.out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
                    'font-family="sans-serif" font-size="13">', '<rect width="100%" height="100%" fill="white"/>']
        self.text(10, 22, title, size=15)

    def text(self, x, y, words, size=13, anchor="start", colour="#222"):
        self.out.append(f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>')

    def bar(self, x, y, width, height, colour, hint=None):
        self.add(f'rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{colour}"', hint)

    def dot(self, x, y, radius, colour, hint=None):
        self.add(f'circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.55"', hint)

    def line(self, x1, y1, x2, y2, colour, width=1, dashes=None):
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.out.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dash}/>')

    def add(self, tag, hint):
        name = tag.split()[0]
        self.out.append(f"<{tag}><title>{escape(hint)}</title></{name}>" if hint else f"<{tag}/>")

    def write(self, path):
        path.write_text("\n".join(self.out + ["</svg>\n"]))
