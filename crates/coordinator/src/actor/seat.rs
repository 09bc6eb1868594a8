//! The way to the actor: there is one while this process leads.

use pleach_base::{Error, Result, code};
use tokio::sync::{mpsc, oneshot, watch};

use super::Actor;

/// Requests that wait; callers beyond them wait too.
const WAITING: usize = 1024;

pub(crate) type Task = Box<dyn FnOnce(&mut Actor) + Send>;

/// The way to one actor. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle(mpsc::Sender<Task>);

impl Handle {
    /// Runs `f` in the actor; the answer comes when everything that `f` changed is stored.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Actor) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let task: Task = Box::new(move |actor| {
            let result = f(actor);
            // The caller may have hung up.
            actor.batch.then(move || drop(reply.send(result)));
        });
        self.0.send(task).await.map_err(|_| going_down())?;
        answer.await.map_err(|_| going_down())?
    }

    /// Runs `f` in the actor; says whether the actor still works.
    pub(crate) async fn tell(&self, f: impl FnOnce(&mut Actor) + Send + 'static) -> bool {
        self.0.send(Box::new(f)).await.is_ok()
    }
}

/// A channel for an actor.
pub(crate) fn channel() -> (Handle, mpsc::Receiver<Task>) {
    let (send, receive) = mpsc::channel(WAITING);
    (Handle(send), receive)
}

fn going_down() -> Error {
    code::UNREACHABLE.error("the coordinator stops, or leads no more").hint("try again in a few seconds")
}

/// What this process is.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    /// It leads.
    Leader(Handle),
    /// It stands by, or does not know whether it still leads.
    Follower {
        /// The address of the one that leads, if there is one.
        leader: Option<String>,
    },
}

/// Where the actor is, while there is one. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Seat(watch::Receiver<Role>);

impl Seat {
    pub(crate) fn new(role: watch::Receiver<Role>) -> Self {
        Self(role)
    }

    /// The actor of now.
    ///
    /// # Errors
    /// `NOT_LEADER`.
    pub(crate) fn now(&self) -> Result<Handle> {
        match &*self.0.borrow() {
            Role::Leader(handle) => Ok(handle.clone()),
            Role::Follower { .. } => Err(code::NOT_LEADER.error("this coordinator does not lead")),
        }
    }

    /// Who leads instead, when this process does not.
    pub(crate) fn elsewhere(&self) -> Option<Option<String>> {
        match &*self.0.borrow() {
            Role::Leader(_) => None,
            Role::Follower { leader } => Some(leader.clone()),
        }
    }

    /// As [`Handle::ask`]. When it is no longer known whether this process leads, nobody waits for that: the caller asks
    /// again, and asking twice does no harm.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Actor) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (handle, mut roles) = (self.now()?, self.0.clone());
        let unsure = async {
            let _ = roles.wait_for(|role| matches!(role, Role::Follower { .. })).await;
        };
        tokio::select! {
            biased;
            answer = handle.ask(f) => answer,
            () = unsure => Err(code::NOT_LEADER.error("this coordinator does not lead any more")),
        }
    }

    /// Whether this process leads, now and after each change.
    pub(crate) fn roles(&self) -> watch::Receiver<Role> {
        self.0.clone()
    }
}
