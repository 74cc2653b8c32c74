//! Pictures in a page, drawn by nothing but elements and the page's style.
//!
//! Each has a title and a description for those who cannot see it; the page has the same as a table.

use maud::{Markup, html};

use super::html::{grouped, short, visible};

/// Who is connected with what, in two columns.
#[derive(Debug, Default)]
pub struct Columns {
    /// What the picture is of.
    pub title: String,
    /// What it shows, in words.
    pub description: String,
    /// Headings of the columns.
    pub heads: [&'static str; 2],
    /// On the left.
    pub left: Vec<Node>,
    /// On the right.
    pub right: Vec<Node>,
    /// Between them; places in `left` and `right`.
    pub links: Vec<Link>,
}

/// One of a column.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What else there is to say, smaller.
    pub note: String,
}

/// A line of a picture.
#[derive(Debug, Clone)]
pub struct Link {
    /// From this one on the left.
    pub left: usize,
    /// To this one on the right.
    pub right: usize,
    /// How it is drawn.
    pub kind: Kind,
    /// From 0 to 1: how broad.
    pub weight: f64,
    /// What it says when one points at it.
    pub title: String,
}

/// What a line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Allowed: a plain line.
    Allow,
    /// By a temporary grant: dashes and dots.
    Grant,
    /// Only reported: dots.
    Shadow,
    /// Denied: dashes with a cross.
    Deny,
}

impl Kind {
    /// All, in the order of the key.
    pub const ALL: [Self; 4] = [Self::Allow, Self::Grant, Self::Shadow, Self::Deny];

    const fn class(self) -> &'static str {
        match self {
            Self::Allow => "link allow",
            Self::Grant => "link granted",
            Self::Shadow => "link shadow",
            Self::Deny => "link deny",
        }
    }
}

const WIDTH: f64 = 1000.0;
const BOX: f64 = 330.0;
const STEP: f64 = 46.0;
const HEIGHT: f64 = 38.0;
const TOP: f64 = 30.0;

/// The picture. Its lines cross as little as a few rounds of sorting achieve.
pub fn columns(picture: &Columns) -> Markup {
    let (left, right) = order(picture);
    let rows = left.len().max(right.len());
    let height = TOP + STEP * to_f64(rows) + 4.0;
    // The shorter column stands in the middle of the longer one.
    let top = |count: usize| TOP + STEP * to_f64(rows - count) / 2.0;
    let (left_top, right_top) = (top(left.len()), top(right.len()));
    let place = |order: &[usize], top: f64, wanted: usize| {
        let at = order.iter().position(|node| *node == wanted).unwrap_or_default();
        top + STEP * to_f64(at)
    };
    let column = |nodes: &[Node], order: &[usize], x: f64, top: f64| {
        html! {
            @for (at, node) in order.iter().filter_map(|node| nodes.get(*node)).enumerate() {
                @let y = top + STEP * to_f64(at);
                g {
                    title { (visible(&node.name)) @if !node.note.is_empty() { " – " (visible(&node.note)) } }
                    rect.box x=(x) y=(y) width=(BOX) height=(HEIGHT) rx="6" {}
                    @if node.note.is_empty() {
                        text x=(x + 10.0) y=(y + 24.0) { (short(&visible(&node.name), 38)) }
                    } @else {
                        text x=(x + 10.0) y=(y + 16.0) { (short(&visible(&node.name), 38)) }
                        text.faint x=(x + 10.0) y=(y + 31.0) { (short(&visible(&node.note), 48)) }
                    }
                }
            }
        }
    };
    // Lines between the same two are drawn beside each other.
    let mut links: Vec<&Link> = picture.links.iter().collect();
    links.sort_by_key(|link| (link.left, link.right, link.kind));
    let lines = links.iter().enumerate().map(|(index, link)| {
        let same = |other: &&&Link| (other.left, other.right) == (link.left, link.right);
        let before = links.iter().take(index).rev().take_while(same).count();
        let all = before + links.iter().skip(index).take_while(same).count();
        let aside = (to_f64(before) - (to_f64(all) - 1.0) / 2.0) * 7.0;
        let from = place(&left, left_top, link.left) + HEIGHT / 2.0 + aside;
        let to = place(&right, right_top, link.right) + HEIGHT / 2.0 + aside;
        (*link, from, to)
    });
    let (x, end) = (BOX, WIDTH - BOX);
    let middle = WIDTH / 2.0;
    html! {
        svg.picture viewBox={"0 0 " (WIDTH) " " (height)} role="img" xmlns="http://www.w3.org/2000/svg" {
            title { (visible(&picture.title)) }
            desc { (visible(&picture.description)) }
            @let [one, other] = picture.heads;
            text.head x="4" y="18" { (one) }
            text.head x=(end + 4.0) y="18" { (other) }
            @for (link, from, to) in lines {
                g.one {
                    title { (visible(&link.title)) }
                    path class=(link.kind.class()) stroke-width=(format!("{:.1}", 1.5 + 5.0 * link.weight))
                        d={"M" (x) " " (from) " C" (middle) " " (from) " " (middle) " " (to) " " (end - 4.0) " " (to)} {}
                    @if link.kind == Kind::Deny {
                        @let at = f64::midpoint(from, to);
                        path.cross d={
                            "M" (middle - 5.0) " " (at - 5.0) " L" (middle + 5.0) " " (at + 5.0)
                            " M" (middle - 5.0) " " (at + 5.0) " L" (middle + 5.0) " " (at - 5.0)
                        } {}
                    } @else {
                        path class=(link.kind.class()) stroke-dasharray="none" stroke-width="1.5"
                            d={"M" (end - 10.0) " " (to - 4.5) " L" (end - 3.0) " " (to) " L" (end - 10.0) " " (to + 4.5)} {}
                    }
                }
            }
            (column(&picture.left, &left, 0.5, left_top))
            (column(&picture.right, &right, end - 0.5, right_top))
        }
    }
}

/// The orders of both columns: each node near those that it is connected with.
fn order(picture: &Columns) -> (Vec<usize>, Vec<usize>) {
    let mut left: Vec<usize> = (0..picture.left.len()).collect();
    let mut right: Vec<usize> = (0..picture.right.len()).collect();
    for _ in 0..4 {
        sort(&mut right, &left, picture.links.iter().map(|link| (link.right, link.left)));
        sort(&mut left, &right, picture.links.iter().map(|link| (link.left, link.right)));
    }
    (left, right)
}

/// Sorts `mine` by the mean place of what each is connected with among `theirs`.
fn sort(mine: &mut [usize], theirs: &[usize], links: impl Iterator<Item = (usize, usize)>) {
    let mut place = vec![0.0; theirs.len()];
    for (at, node) in theirs.iter().enumerate() {
        if let Some(place) = place.get_mut(*node) {
            *place = to_f64(at);
        }
    }
    let mut sums = vec![(0.0, 0.0); mine.len()];
    for (one, other) in links {
        if let (Some((sum, count)), Some(at)) = (sums.get_mut(one), place.get(other)) {
            *sum += *at;
            *count += 1.0;
        }
    }
    let mean = |node: &usize| match sums.get(*node) {
        Some((sum, count)) if *count > 0.0 => sum / count,
        _ => f64::MAX,
    };
    mine.sort_by(|one, other| mean(one).total_cmp(&mean(other)));
}

/// The key to such pictures: what each kind of line in it means.
pub fn key(meanings: &[(Kind, &str)]) -> Markup {
    html! {
        ul.key {
            @for (kind, meaning) in meanings {
                li {
                    svg width="44" height="14" viewBox="0 0 44 14" aria-hidden="true" {
                        path class=(kind.class()) stroke-width="2.5" d="M1 7 L43 7" {}
                        @if *kind == Kind::Deny { path.cross d="M17 2 L27 12 M17 12 L27 2" {} }
                    }
                    (meaning)
                }
            }
        }
    }
}

/// Rows of bars over the same time.
#[derive(Debug)]
pub struct Bars {
    /// What the picture is of.
    pub title: String,
    /// What it shows, in words.
    pub description: String,
    /// The first and the last label of the axis.
    pub ends: [String; 2],
    /// Of each row its name, how it is drawn, and how much of it there was in each span of time.
    pub rows: Vec<(String, Kind, Vec<u64>)>,
}

/// The picture: each row by its own measure, with its sum at the end.
pub fn bars(picture: &Bars) -> Markup {
    const ROW: f64 = 40.0;
    const FROM: f64 = 250.0;
    const ROOM: f64 = 620.0;
    const TALLEST: f64 = 30.0;
    let height = ROW * to_f64(picture.rows.len()) + 26.0;
    html! {
        svg.picture viewBox={"0 0 " (WIDTH) " " (height)} role="img" xmlns="http://www.w3.org/2000/svg" {
            title { (visible(&picture.title)) }
            desc { (visible(&picture.description)) }
            @for (at, (name, kind, values)) in picture.rows.iter().enumerate() {
                @let ground = ROW * (to_f64(at) + 1.0) - 4.0;
                @let most = values.iter().copied().max().unwrap_or_default().max(1);
                @let step = ROOM / to_f64(values.len().max(1));
                g {
                    title { (visible(name)) ": " (grouped(values.iter().sum())) ", at most " (grouped(most)) " at once" }
                    text.end x=(FROM - 12.0) y=(ground - 4.0) { (short(&visible(name), 32)) }
                    path.axis d={"M" (FROM) " " (ground) " H" (FROM + ROOM)} {}
                    @for (index, value) in values.iter().enumerate().filter(|(_, value)| **value > 0) {
                        // What is there at all must be seen.
                        @let tall = (TALLEST * ratio(*value, most)).max(1.5);
                        rect class=(match kind { Kind::Allow => "bar allow", Kind::Deny => "bar", Kind::Grant | Kind::Shadow => "bar watch" })
                            x=(format!("{:.2}", FROM + step * to_f64(index))) y=(format!("{:.2}", ground - tall))
                            width=(format!("{:.2}", (step - 0.6).clamp(0.8, 40.0))) height=(format!("{tall:.2}")) {}
                    }
                    text x=(FROM + ROOM + 12.0) y=(ground - 4.0) { (grouped(values.iter().sum())) }
                }
            }
            @let [first, last] = &picture.ends;
            text.faint x=(FROM) y=(height - 6.0) { (visible(first)) }
            text.faint.end x=(FROM + ROOM) y=(height - 6.0) { (visible(last)) }
        }
    }
}

/// `part` of `whole`, from 0 to 1.
pub fn ratio(part: u64, whole: u64) -> f64 {
    to_u32(part, whole).map_or(0.0, |(part, whole)| f64::from(part) / f64::from(whole))
}

/// Both so small that they are exact as floating point numbers; `None` of nothing.
fn to_u32(part: u64, whole: u64) -> Option<(u32, u32)> {
    let shift = (64 - whole.leading_zeros()).saturating_sub(31);
    let (part, whole) = (u32::try_from(part >> shift).ok()?, u32::try_from(whole >> shift).ok()?);
    (whole > 0).then_some((part, whole))
}

fn to_f64(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::MAX, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stand_beside_what_they_are_connected_with() {
        let node = |name: &str| Node { name: name.to_owned(), note: String::new() };
        let link = |left, right| Link {
            left,
            right,
            kind: Kind::Allow,
            weight: 0.0,
            title: String::new(),
        };
        let picture = Columns {
            left: vec![node("a"), node("b"), node("c")],
            right: vec![node("x"), node("y"), node("z")],
            links: vec![link(0, 2), link(1, 1), link(2, 0)],
            ..Columns::default()
        };
        assert_eq!(order(&picture), (vec![0, 1, 2], vec![2, 1, 0]));
        let drawn = columns(&picture).into_string();
        assert_eq!(drawn.matches("<rect").count(), 6);
        assert_eq!(drawn.matches("class=\"one\"").count(), 3);
    }

    #[test]
    fn a_picture_of_nothing_is_one() {
        assert!(columns(&Columns::default()).into_string().starts_with("<svg"));
    }

    #[test]
    fn a_ratio_is_between_nothing_and_all() {
        for (part, whole, expected) in
            [(0, 0, 0.0), (1, 2, 0.5), (u64::MAX / 2, u64::MAX, 0.5), (7, 7, 1.0)]
        {
            assert!((ratio(part, whole) - expected).abs() < 1e-6, "{part} {whole}");
        }
    }
}
