//! Where tokens are routed: at linear maps, or at a feed-forward part as a whole.

use pleach_base::{Result, code};
use pleach_nn::{BackboneConfig, Init, Part, Role, Site, SiteId, Sites};

use crate::plan::{Plan, PlannedTensor};

/// What a router's weight is called at its place.
pub(crate) const WEIGHT: &str = "router_weight";

/// A place with a router.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// The linear map, or the feed-forward part.
    pub(crate) site: SiteId,
    /// The sites within a feed-forward part at which experts act; none at a linear map.
    pub(crate) inside: Vec<SiteId>,
}

/// The places of experts that act as `plan` says, in the model's order. `parts`: a feed-forward part is one place, so that
/// a token goes through all of an expert or none of it.
///
/// # Errors
/// `METHOD_CONFIG` for an expert at a site where tokens cannot be told apart.
pub(crate) fn of(plan: &Plan, sites: &Sites, parts: bool) -> Result<Vec<Place>> {
    let mut places: Vec<Place> = Vec::new();
    for (expert, own) in plan.children.iter().enumerate() {
        for id in &own.sites {
            let site = &sites[*id];
            let whole = if parts { part_of(site, sites) } else { None };
            if whole.is_none() && !matches!(site.role, Role::Linear | Role::Head) {
                let why = format!("acts at `{}` ({}), where tokens cannot be routed", site.path, site.role);
                return Err(code::METHOD_CONFIG
                    .error(format!("experts[{expert}]: {why}"))
                    .hint("experts of this router act at linear maps"));
            }
            let (at, inside) = whole.map_or((*id, None), |whole| (whole, Some(*id)));
            match places.iter_mut().find(|place| place.site == at) {
                Some(place) => place.inside.extend(inside.filter(|id| !place.inside.contains(id))),
                None => places.push(Place { site: at, inside: inside.into_iter().collect() }),
            }
        }
    }
    places.sort_by_key(|place| place.site);
    Ok(places)
}

/// The feed-forward part that a site is in.
fn part_of(site: &Site, sites: &Sites) -> Option<SiteId> {
    let within = matches!(site.part, Part::Gate | Part::Up | Part::Down) && site.role == Role::Linear;
    let mut wholes = sites.with_role(Role::FeedForward).filter(|whole| within && whole.block == site.block);
    wholes.next().map(|whole| whole.id)
}

/// A plan of a router's weight `[experts, width]` at each of the places of `plan`'s experts.
///
/// # Errors
/// As [`of`].
pub(crate) fn routers(
    plan: &Plan,
    model: &dyn BackboneConfig,
    experts: usize,
    parts: bool,
    init: impl Fn(&Site) -> Init,
) -> Result<Plan> {
    let places = of(plan, model.sites(), parts)?;
    let router = |place: &Place| {
        let site = &model.sites()[place.site];
        let name = format!("base_model.model.{}.router.weight", site.path.replace('@', "."));
        PlannedTensor::trained(name, site.id, WEIGHT, [experts, site.dims.input], init(site))
    };
    let tensors = places.iter().map(router).collect();
    Ok(Plan { tensors, sites: places.iter().map(|place| place.site).collect(), ..Plan::default() })
}
