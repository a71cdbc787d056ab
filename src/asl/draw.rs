//! Pictures of a tree: Mermaid for documents, SVG for anything that shows images.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::signal::Ends;
use super::tree::{Kind, Part};

/// What to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Picture {
    /// A Mermaid flowchart.
    Mermaid,
    /// A Scalable Vector Graphic.
    Svg,
}

pub fn draw(picture: Picture, root: &Part, names: &[&str], ends: &[Ends]) -> String {
    match picture {
        Picture::Mermaid => mermaid(root, names, ends.len()),
        Picture::Svg => svg(root, names, ends.len()),
    }
}

/// Where flow enters and leaves a part: ids of Mermaid nodes.
struct Flow {
    enter: Vec<String>,
    leave: Vec<String>,
}

struct Mermaid<'a> {
    names: &'a [&'a str],
    text: String,
    points: usize,
    /// By token edge: who signals, who waits.
    edges: Vec<(Vec<String>, Vec<String>)>,
}

fn mermaid(root: &Part, names: &[&str], token_edges: usize) -> String {
    let mut chart =
        Mermaid { names, text: "flowchart LR\n".into(), points: 0, edges: vec![(Vec::new(), Vec::new()); token_edges] };
    chart.part(root);
    for (from, to) in std::mem::take(&mut chart.edges) {
        for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
            let _ = writeln!(chart.text, "  {from} -. token .-> {to}");
        }
    }
    chart.text
}

impl Mermaid<'_> {
    fn part(&mut self, part: &Part) -> Flow {
        let flow = match &part.kind {
            Kind::Step(node) => {
                let id = format!("s{node}");
                let name = self.names[*node as usize].replace('"', "#quot;");
                let _ = writeln!(self.text, "  {id}[\"{name}\"]");
                Flow { enter: vec![id.clone()], leave: vec![id] }
            }
            Kind::Junction => self.point(" "),
            Kind::Nested(inner) => self.part(inner),
            Kind::Series(parts) => {
                let mut flow: Option<Flow> = None;
                for part in parts {
                    let next = self.part(part);
                    flow = Some(match flow {
                        None => next,
                        Some(before) => self.join(before, next),
                    });
                }
                flow.unwrap_or(Flow { enter: Vec::new(), leave: Vec::new() })
            }
            Kind::Barrier(rows) => {
                let mut rows = rows.iter();
                let mut flow = rows.next().map_or(Flow { enter: Vec::new(), leave: Vec::new() }, |row| self.part(row));
                for row in rows {
                    let next = self.part(row);
                    flow = self.join_rows(flow, next);
                }
                flow
            }
            Kind::Parallel(parts) => {
                let mut flow = Flow { enter: Vec::new(), leave: Vec::new() };
                for part in parts {
                    let inner = self.part(part);
                    flow.enter.extend(inner.enter);
                    flow.leave.extend(inner.leave);
                }
                flow
            }
        };
        for &edge in &part.signals {
            self.edges[edge].0.clone_from(&flow.leave);
        }
        for &edge in &part.awaits {
            self.edges[edge].1.clone_from(&flow.enter);
        }
        flow
    }

    fn point(&mut self, text: &str) -> Flow {
        self.points += 1;
        let id = format!("p{}", self.points);
        let _ = writeln!(self.text, "  {id}(({text}))");
        Flow { enter: vec![id.clone()], leave: vec![id] }
    }

    /// A row of a lane after another one, which it does not depend on.
    fn join_rows(&mut self, before: Flow, after: Flow) -> Flow {
        if let ([from], [to]) = (&before.leave[..], &after.enter[..]) {
            let _ = writeln!(self.text, "  {from} -- then --> {to}");
            return Flow { enter: before.enter, leave: after.leave };
        }
        let point = self.point("barrier");
        let front = self.join(before, point);
        self.join(front, after)
    }

    /// Many-to-many goes through a point, so that a picture stays a picture.
    fn join(&mut self, before: Flow, after: Flow) -> Flow {
        let Flow { enter, leave } = before;
        let sides = if leave.len() > 1 && after.enter.len() > 1 {
            let point = self.point(" ");
            vec![(leave, point.enter.clone()), (point.leave, after.enter)]
        } else {
            vec![(leave, after.enter)]
        };
        for (from, to) in sides {
            for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (from, to))) {
                let _ = writeln!(self.text, "  {from} --> {to}");
            }
        }
        Flow { enter, leave: after.leave }
    }
}

const HEIGHT: f64 = 26.0;
const GAP_X: f64 = 28.0;
const GAP_Y: f64 = 12.0;
const CHARACTER: f64 = 7.4;

struct Svg<'a> {
    names: &'a [&'a str],
    shapes: String,
    lines: String,
    /// By token edge: where it begins and ends.
    edges: Vec<((f64, f64), (f64, f64))>,
}

fn svg(root: &Part, names: &[&str], token_edges: usize) -> String {
    let origin = (0.0, 0.0);
    let mut drawing =
        Svg { names, shapes: String::new(), lines: String::new(), edges: vec![(origin, origin); token_edges] };
    let (width, height) = drawing.size(root);
    drawing.part(root, GAP_X, GAP_Y, height);
    let mut tokens = String::new();
    let (width, height) = (width + 2.0 * GAP_X, height + 2.0 * GAP_Y);
    for ((x1, y1), (x2, y2)) in &drawing.edges {
        // Forward half the way; a long way back bends little, or it would leave the picture.
        let bend = if x2 > x1 { ((x2 - x1) / 2.0).max(30.0) } else { 30.0 };
        let (c1, c2) = ((x1 + bend).min(width), (x2 - bend).max(0.0));
        let _ = writeln!(
            tokens,
            r#"<path class="token" d="M{x1:.1} {y1:.1}C{c1:.1} {y1:.1} {c2:.1} {y2:.1} {x2:.1} {y2:.1}"/>"#
        );
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}">
<style>
text{{font:12px ui-monospace,monospace;text-anchor:middle;fill:#1a2733}}
rect{{fill:#eef4fb;stroke:#3b6ea5}}circle{{fill:#3b6ea5}}
path{{fill:none;stroke:#8796a5}}.token{{stroke:#c2571a;stroke-dasharray:5 3;marker-end:url(#a)}}.barrier{{stroke:#8a1c1c;stroke-width:3}}
</style>
<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#c2571a;stroke:none"/></marker></defs>
<rect width="100%" height="100%" style="fill:#fff;stroke:none"/>
{}{}{tokens}</svg>
"##,
        drawing.lines, drawing.shapes
    )
}

impl Svg<'_> {
    #[expect(clippy::cast_precision_loss, reason = "lengths of names")]
    fn size(&self, part: &Part) -> (f64, f64) {
        match &part.kind {
            Kind::Step(node) => (self.names[*node as usize].chars().count() as f64 * CHARACTER + 18.0, HEIGHT),
            Kind::Junction => (10.0, HEIGHT),
            Kind::Nested(inner) => self.size(inner),
            Kind::Series(_) | Kind::Barrier(..) => {
                let sizes = part.children().into_iter().map(|part| self.size(part));
                let (mut width, mut height) = (-GAP_X, 0.0_f64);
                for (w, h) in sizes {
                    width += w + GAP_X;
                    height = height.max(h);
                }
                let bars = if let Kind::Barrier(rows) = &part.kind { rows.len() - 1 } else { 0 };
                (width + bars as f64 * GAP_X, height)
            }
            Kind::Parallel(parts) => {
                let (mut width, mut height) = (0.0_f64, -GAP_Y);
                for (w, h) in parts.iter().map(|part| self.size(part)) {
                    width = width.max(w);
                    height += h + GAP_Y;
                }
                (width + 2.0 * GAP_X, height)
            }
        }
    }

    /// Draws a part; returns where it begins and ends on its middle line.
    fn part(&mut self, part: &Part, x: f64, y: f64, height: f64) -> (f64, f64) {
        let (width, _) = self.size(part);
        let middle = y + height / 2.0;
        match &part.kind {
            Kind::Step(node) => {
                let text = self.names[*node as usize].replace('&', "&amp;").replace('<', "&lt;");
                let top = middle - HEIGHT / 2.0;
                let center = x + width / 2.0;
                let _ = writeln!(
                    self.shapes,
                    r#"<rect x="{x:.1}" y="{top:.1}" width="{width:.1}" height="{HEIGHT}" rx="5"/><text x="{center:.1}" y="{middle:.1}" dy=".35em">{text}</text>"#
                );
            }
            Kind::Junction => {
                let center = x + width / 2.0;
                let _ = writeln!(self.shapes, r#"<circle cx="{center:.1}" cy="{middle:.1}" r="4"/>"#);
            }
            Kind::Nested(inner) => {
                self.part(inner, x, y, height);
            }
            Kind::Series(_) | Kind::Barrier(..) => {
                let is_barrier = matches!(part.kind, Kind::Barrier(..));
                let gap = if is_barrier { 2.0 * GAP_X } else { GAP_X };
                let mut at = x;
                for (index, child) in part.children().into_iter().enumerate() {
                    if index > 0 {
                        self.line((at - gap, middle), (at, middle));
                        if is_barrier {
                            let (bar, from, to) = (at - GAP_X, y, y + height);
                            let _ = writeln!(self.lines, r#"<path class="barrier" d="M{bar:.1} {from:.1}V{to:.1}"/>"#);
                        }
                    }
                    let (width, _) = self.size(child);
                    self.part(child, at, y, height);
                    at += width + gap;
                }
            }
            Kind::Parallel(parts) => {
                let total: f64 = self.size(part).1;
                let mut top = y + (height - total) / 2.0;
                for child in parts {
                    let (w, h) = self.size(child);
                    let begin = x + GAP_X;
                    self.part(child, begin, top, h);
                    self.line((x, middle), (begin, top + h / 2.0));
                    self.line((begin + w, top + h / 2.0), (x + width, middle));
                    top += h + GAP_Y;
                }
            }
        }
        for &edge in &part.signals {
            self.edges[edge].0 = (x + width, middle);
        }
        for &edge in &part.awaits {
            self.edges[edge].1 = (x, middle);
        }
        (x, x + width)
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let bend = (x2 - x1) / 2.0;
        let (c1, c2) = (x1 + bend, x2 - bend);
        let _ = writeln!(self.lines, r#"<path d="M{x1:.1} {y1:.1}C{c1:.1} {y1:.1} {c2:.1} {y2:.1} {x2:.1} {y2:.1}"/>"#);
    }
}
